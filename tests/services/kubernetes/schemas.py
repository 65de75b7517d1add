"""Whether an object is one that Kubernetes would take: every key known, every value in its range.

Built-in kinds against their published schemas (kubernetes-validate, strict); the three custom kinds
against the part of their definitions that we use, written down here. An unknown key is a problem in
both, so a part that is used and not written down cannot pass.
"""

from typing import Any

import jsonschema
import kubernetes_validate

VERSION = "1.37"
_KSERVE_KEYS = {"minReplicas", "maxReplicas"}


def _map(required: list[str] | None = None, **properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": required or [],
        "additionalProperties": False,
    }


def _list(items: Any, most: int, least: int = 0) -> dict[str, Any]:
    return {"type": "array", "items": items, "maxItems": most, "minItems": least}


_WORD = {"type": "string", "minLength": 1, "maxLength": 253}
_PORT = {"type": "integer", "minimum": 1, "maximum": 65535}
_COUNT = {"type": "integer", "minimum": 0}
_HEADER = _map(["name", "value"], name=_WORD, value={"type": "string", "maxLength": 4096})
_LABEL = {"type": "string", "minLength": 1, "maxLength": 63}
_GROUP = {"type": "string", "maxLength": 253}
_REF = {"name": _WORD, "namespace": _LABEL, "group": _GROUP, "kind": _LABEL}
_WEIGHT = {"type": "integer", "minimum": 0, "maximum": 1_000_000}
_FILTER = _map(
    ["type"],
    type={"enum": ["RequestHeaderModifier", "RequestMirror"]},
    requestHeaderModifier=_map(
        set=_list(_HEADER, 16), add=_list(_HEADER, 16), remove=_list(_WORD, 16)
    ),
    requestMirror=_map(
        ["backendRef"],
        backendRef=_map(["name"], **_REF, port=_PORT),
        percent={"type": "integer", "minimum": 0, "maximum": 100},
    ),
)
_MATCH = _map(
    path=_map(
        type={"enum": ["Exact", "PathPrefix", "RegularExpression"]},
        value={"type": "string", "maxLength": 1024},
    ),
    headers=_list(
        _map(
            ["name", "value"],
            type={"enum": ["Exact", "RegularExpression"]},
            name=_WORD,
            value={"type": "string", "minLength": 1, "maxLength": 4096},
        ),
        16,
    ),
)
HTTP_ROUTE = _map(
    parentRefs=_list(_map(["name"], **_REF, port=_PORT, sectionName=_WORD), 32),
    hostnames=_list({"type": "string", "pattern": r"^(\*\.)?[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"}, 16),
    rules=_list(
        _map(
            matches=_list(_MATCH, 64),
            filters=_list(_FILTER, 16),
            backendRefs=_list(_map(["name"], **_REF, port=_PORT, weight=_WEIGHT), 16),
        ),
        16,
        1,
    ),
)
SCALED_OBJECT = _map(
    ["scaleTargetRef", "triggers"],
    scaleTargetRef=_map(["name"], name=_WORD, kind=_WORD, apiVersion=_WORD),
    minReplicaCount=_COUNT,
    maxReplicaCount={"type": "integer", "minimum": 1},
    pollingInterval={"type": "integer", "minimum": 1},
    cooldownPeriod=_COUNT,
    advanced=_map(
        horizontalPodAutoscalerConfig=_map(behavior={"type": "object"}, name={"type": "string"})
    ),
    triggers=_list(
        _map(
            ["type", "metadata"],
            type={"const": "prometheus"},
            metricType={"enum": ["AverageValue", "Value"]},
            metadata=_map(
                ["serverAddress", "query", "threshold"],
                serverAddress={"type": "string"},
                query={"type": "string"},
                threshold={"type": "string"},
            ),
        ),
        16,
        1,
    ),
)
GATEWAY = _map(
    ["gatewayClassName", "listeners"],
    gatewayClassName=_WORD,
    listeners=_list(
        _map(
            ["name", "port", "protocol"],
            name=_WORD,
            hostname={"type": "string", "maxLength": 253},
            port=_PORT,
            protocol={"enum": ["HTTP", "HTTPS"]},
            tls=_map(
                mode={"const": "Terminate"}, certificateRefs=_list(_map(["name"], **_REF), 64)
            ),
            allowedRoutes=_map(
                namespaces=_map(
                    **{"from": {"enum": ["All", "Selector", "Same"]}}, selector={"type": "object"}
                )
            ),
        ),
        64,
        1,
    ),
)
_CUSTOM = {
    ("gateway.networking.k8s.io/v1", "Gateway"): GATEWAY,
    ("gateway.networking.k8s.io/v1", "HTTPRoute"): HTTP_ROUTE,
    ("keda.sh/v1alpha1", "ScaledObject"): SCALED_OBJECT,
}


def problems(found: dict[str, Any]) -> str:
    """The first problem with an object; nothing when there is none."""
    kind = (found["apiVersion"], found["kind"])
    try:
        if kind == ("serving.kserve.io/v1beta1", "InferenceService"):
            _check_inference_service(found)
        elif kind in _CUSTOM:
            jsonschema.validate(found["spec"], _CUSTOM[kind])
            _check_metadata(found)
            _check_autoscaler(found)
        else:
            kubernetes_validate.validate(found, VERSION, strict=True)
    except (jsonschema.ValidationError, kubernetes_validate.ValidationError) as error:
        return f"{'/'.join(map(str, error.path))}: {error.message}"
    except kubernetes_validate.SchemaNotFoundError as error:
        return str(error.message)
    return ""


def _check_metadata(found: dict[str, Any]) -> None:
    shell = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": found["metadata"]}
    kubernetes_validate.validate(shell, VERSION, strict=True)


def _check_autoscaler(found: dict[str, Any]) -> None:
    advanced = found["spec"].get("advanced", {})
    behavior = advanced.get("horizontalPodAutoscalerConfig", {}).get("behavior")
    if behavior is not None:
        scale = {"kind": "Deployment", "name": "any"}
        spec = {"scaleTargetRef": scale, "maxReplicas": 1, "behavior": behavior}
        shell = {"metadata": {"name": "any"}, "spec": spec}
        shell |= {"apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler"}
        kubernetes_validate.validate(shell, VERSION, strict=True)


def _check_inference_service(found: dict[str, Any]) -> None:
    """A predictor is a pod's spec and KServe's own few keys."""
    jsonschema.validate(found["spec"], _map(["predictor"], predictor={"type": "object"}))
    _check_metadata(found)
    predictor = found["spec"]["predictor"]
    jsonschema.validate(
        {key: predictor[key] for key in _KSERVE_KEYS & predictor.keys()},
        _map(minReplicas=_COUNT, maxReplicas=_COUNT),
    )
    pod = {key: value for key, value in predictor.items() if key not in _KSERVE_KEYS}
    shell = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "any"}, "spec": pod}
    kubernetes_validate.validate(shell, VERSION, strict=True)
