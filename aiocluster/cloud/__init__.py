"""What a person does around jobs, from a laptop: the stack, images, jobs, logs and results. Nothing here prints.

Progress goes to callbacks, trouble is an error that says what to try. It knows nothing of running clusters.
"""
