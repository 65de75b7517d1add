"""Is an engine ready? Health, the adapter in its list, and a deterministic answer: all three."""

import httpx

from trainyard.rollout.target import ServedVersion


def problem(url: str, version: ServedVersion, *, health: str = "/health") -> str | None:
    """Why the engine at `url` is not ready to serve `version`; None when it is."""
    try:
        with httpx.Client(base_url=url, timeout=10, trust_env=False) as client:
            code = client.get(health).status_code
            if code != 200:
                return f"{health} answers {code}"
            models = [row["id"] for row in client.get("/v1/models").json()["data"]]
            if version.model not in models:
                return f"/v1/models lists {', '.join(models)}, not {version.model}"
            return _probe(client, version)
    except httpx.HTTPError as error:
        return f"no answer: {error or type(error).__name__}"
    except (KeyError, ValueError, TypeError) as error:
        return f"an answer that is no OpenAI answer: {error!r}"


def _probe(client: httpx.Client, version: ServedVersion) -> str | None:
    probe = version.probe
    body = {
        "model": version.model,
        "messages": list(probe.messages),
        "max_tokens": probe.max_tokens,
        "temperature": 0,
        "seed": 0,
    }
    answer = client.post("/v1/chat/completions", json=body)
    if answer.status_code != 200:
        return f"the probe got {answer.status_code}: {answer.text[:200]}"
    text = answer.json()["choices"][0]["message"]["content"] or ""
    if probe.answer is not None and text != probe.answer:
        return f"the probe got {text!r}; the evaluated model answered {probe.answer!r}"
    return None
