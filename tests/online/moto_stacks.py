"""A patch of moto, for these tests alone: CloudFormation knows what the templates of deploy/ use.

moto as it is creates and deletes the resources of a stack, and that is kept; added are

- `Fn::Cidr`;
- defaults of parameters that are lists, and those that stay as they were in an update;
- an update that would change nothing, which is refused, and one of compute environments and job definitions;
- values that `AllowedValues` or `AllowedPattern` do not allow, which are refused;
- repositories without a name: they get one in small letters;
- compute environments without a service role: they get the service-linked one, made where it is missing;
- the deletion of route tables, and of what AWS Batch has;
- a stack whose bucket has something in it: it is not deleted, but goes to DELETE_FAILED, and an event says why.

Source: "Intrinsic function reference", "Parameters" and "Troubleshooting" of the AWS CloudFormation user guide.
"""

from __future__ import annotations

import ipaddress
import re
from itertools import islice
from typing import Any

from moto.batch import models as batch_models
from moto.cloudformation import models, parsing, responses
from moto.cloudformation.exceptions import ValidationError
from moto.ec2.models import ec2_backends
from moto.ec2.models.route_tables import RouteTable
from moto.iam.models import iam_backends
from moto.s3.models import FakeBucket

SERVICE = "batch.amazonaws.com"
original_clean_json = parsing.clean_json
original_name = parsing.generate_resource_name
original_load_parameters = parsing.ResourceMap.load_parameters
original_create_environment = batch_models.ComputeEnvironment.create_from_cloudformation_json.__func__
original_delete_stack = models.CloudFormationBackend.delete_stack


def clean_json(value: Any, resources: Any) -> Any:
    if not isinstance(value, dict) or "Fn::Cidr" not in value:
        return original_clean_json(value, resources)
    block, count, bits = original_clean_json(value["Fn::Cidr"], resources)
    subnets = ipaddress.ip_network(block).subnets(new_prefix=32 - int(bits))
    return [str(subnet) for subnet in islice(subnets, int(count))]


def load_parameters(self: Any) -> None:
    slots = self._template.get("Parameters", {})
    for name, slot in slots.items():
        check(name, slot, self.input_parameters.get(name, slot.get("Default")))
    defaults = {name: str(slot["Default"]) for name, slot in slots.items() if "Default" in slot}
    self.input_parameters = {**defaults, **self.input_parameters}
    original_load_parameters(self)


def updated_parameters(self: Any, instance: Any, incoming_params: list[dict[str, Any]]) -> dict[str, str]:
    before = instance.resource_map.input_parameters
    return {
        one["ParameterKey"]: before[one["ParameterKey"]] if one.get("UsePreviousValue") else one["ParameterValue"]
        for one in incoming_params
    }


def refuse_same(self: Any, incoming_params: list[dict[str, Any]], template: str, stack: Any) -> None:
    after = updated_parameters(None, stack, incoming_params)
    if stack.has_template(template) and after == stack.resource_map.input_parameters:
        raise ValidationError(message="No updates are to be performed.")


def check(name: str, slot: dict[str, Any], value: Any) -> None:
    allowed = [str(one) for one in slot.get("AllowedValues", ())]
    if allowed and str(value) not in allowed:
        raise ValidationError(message=f"Template error: Parameter '{name}' must be one of AllowedValues: [{', '.join(allowed)}]")
    pattern = slot.get("AllowedPattern")
    if pattern and not re.fullmatch(pattern, str(value)):
        told = slot.get("ConstraintDescription") or f"must match pattern {pattern}"
        raise ValidationError(message=f"Parameter {name} failed to satisfy constraint: {told}")


def generated_name(kind: str, stack: str, logical_id: str) -> str:
    name = str(original_name(kind, stack, logical_id))
    return name.lower() if kind == "AWS::ECR::Repository" else name


def create_environment(cls: Any, /, name: str, template: dict[str, Any], account: str, region: str, **more: Any) -> Any:
    if "ServiceRole" not in template["Properties"]:
        iam = iam_backends[account]["aws"]
        linked = [role for role in iam.get_roles() if role.path == f"/aws-service-role/{SERVICE}/"]
        role = linked[0] if linked else iam.create_service_linked_role(SERVICE, "", "")
        template = {**template, "Properties": {**template["Properties"], "ServiceRole": role.arn}}
    return original_create_environment(cls, name, template, account, region, **more)


def update_environment(cls: Any, /, original_resource: Any, cloudformation_json: Any, **names: Any) -> Any:
    resources = batch_models.lowercase_first_key(cloudformation_json["Properties"]["ComputeResources"])
    original_resource.compute_resources.update(resources)
    return original_resource


def update_definition(cls: Any, /, original_resource: Any, cloudformation_json: Any, **names: Any) -> Any:
    account, region = names["account_id"], names["region_name"]
    return cls.create_from_cloudformation_json(original_resource.name, cloudformation_json, account, region)


def delete_route_table(cls: Any, id: str, template: Any, account: str, region: str) -> None:
    ec2 = ec2_backends[account][region]
    (table,) = ec2.describe_route_tables([id])
    for association in list(table.associations):
        ec2.disassociate_route_table(association)
    ec2.delete_route_table(id)


def delete_queue(cls: Any, arn: str, template: Any, account: str, region: str) -> None:
    batch_models.batch_backends[account][region].delete_job_queue(arn)


def delete_environment(cls: Any, arn: str, template: Any, account: str, region: str) -> None:
    batch_models.batch_backends[account][region].delete_compute_environment(arn)


def delete_definition(cls: Any, arn: str, template: Any, account: str, region: str) -> None:
    batch_models.batch_backends[account][region].deregister_job_definition(arn)


def delete_stack(self: Any, name_or_id: str) -> None:
    found = [stack for stack in self.stacks.values() if name_or_id in (stack.name, stack.stack_id)]
    for stack in found:
        full = [one for one in stack.stack_resources if isinstance(one, FakeBucket) and len(one.keys)]
        for bucket in full:
            reason = f"The bucket you tried to delete is not empty (Service: S3, Status Code: 409): {bucket.name}"
            stack.events.append(
                models.Event(
                    stack_id=stack.stack_id,
                    stack_name=stack.name,
                    logical_resource_id=bucket.logical_resource_id,
                    physical_resource_id=bucket.name,
                    resource_type="AWS::S3::Bucket",
                    resource_status="DELETE_FAILED",
                    resource_status_reason=reason,
                    resource_properties=None,
                )
            )
        if full:
            names = ", ".join(str(bucket.logical_resource_id) for bucket in full)
            stack.status = "DELETE_FAILED"
            stack._add_stack_event(
                "DELETE_FAILED", resource_status_reason=f"The following resource(s) failed to delete: [{names}]."
            )
            return
    original_delete_stack(self, name_or_id)


def apply() -> None:
    """moto's CloudFormation is patched in this process; its version is checked by `moto_patch`."""
    parsing.clean_json = clean_json
    parsing.generate_resource_name = generated_name
    parsing.ResourceMap.load_parameters = load_parameters
    batch_models.ComputeEnvironment.create_from_cloudformation_json = classmethod(create_environment)
    models.CloudFormationBackend._resolve_update_parameters = updated_parameters
    responses.CloudFormationResponse._validate_different_update = refuse_same
    batch_models.ComputeEnvironment.update_from_cloudformation_json = classmethod(update_environment)
    batch_models.JobDefinition.update_from_cloudformation_json = classmethod(update_definition)
    RouteTable.delete_from_cloudformation_json = classmethod(delete_route_table)
    batch_models.JobQueue.delete_from_cloudformation_json = classmethod(delete_queue)
    batch_models.ComputeEnvironment.delete_from_cloudformation_json = classmethod(delete_environment)
    batch_models.JobDefinition.delete_from_cloudformation_json = classmethod(delete_definition)
    models.CloudFormationBackend.delete_stack = delete_stack
