"""Pi by the share of random points that fall into a quarter of a circle; the figures are saved as results.

Here:     aiocluster run --workers 4 monte_carlo.py
On AWS:   aiocluster job submit monte_carlo.py --workers 8 --build --push --register --wait --follow --results DIR
"""

import argparse
import asyncio
import math
import random

import aiocluster


def hits(seed: int, points: int) -> int:
    """How many of so many points are in the circle. The seed makes it the same wherever it runs."""
    draw = random.Random(seed).random
    return sum(draw() ** 2 + draw() ** 2 < 1 for _ in range(points))


async def main(samples: int, points: int) -> None:
    done = inside = 0
    async with aiocluster.Cluster.from_env() as cluster:
        # Samples are independent of each other: one that was lost with its worker is simply drawn again.
        again = cluster.options(idempotent=True)
        async for count in again.map(hits, range(samples), [points] * samples, ordered=False):
            done, inside = done + 1, inside + count
            if done % max(1, samples // 10) == 0:
                print(f"{done} of {samples} samples: pi is about {4 * inside / (done * points):.6f}", flush=True)
    value = 4 * inside / (samples * points)
    error = 4 * math.sqrt(value / 4 * (1 - value / 4) / (samples * points))
    figures = {"pi": value, "standard_error": error, "samples": samples, "points": points}
    await aiocluster.results.save("pi.pickle", figures)
    print(f"pi is about {value:.6f} ± {error:.6f}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=200)
    parser.add_argument("--points", type=int, default=10_000)
    arguments = parser.parse_args()
    asyncio.run(main(arguments.samples, arguments.points))
