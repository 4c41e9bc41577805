"""Which prompt a text gets before it is embedded."""

from __future__ import annotations

from collections.abc import Mapping

from pellucid.errors import PromptUnknown
from pellucid.models.backend import InputType

# Names that repositories give to the same thing, in the order in which they are looked for. Empty
# ones are passed over: the library since version 6 fills "query" and "document" with "" and then
# never looks at "passage", which its documentation promises.
_NAMES: dict[InputType, tuple[str, ...]] = {
    "query": ("query",),
    "document": ("document", "passage", "corpus"),
}


def choose_prompt(
    *,
    input_type: InputType | None,
    prompt_name: str | None,
    prompts: Mapping[str, str],
    default_prompt_name: str | None,
    model_id: str,
) -> str | None:
    """The text to put before every input, None for none.

    A name asked for wins; then the kind of input (a model without such a prompt gets none, its
    default is not used for it); then the model's default. Raises PromptUnknown.
    """
    if prompt_name is not None:
        if prompt_name not in prompts:
            known = ", ".join(sorted(prompts)) or "none"
            raise PromptUnknown(prompt=prompt_name, model_id=model_id, known=known)
        return prompts[prompt_name] or None
    if input_type is not None:
        return next((prompts[name] for name in _NAMES[input_type] if prompts.get(name)), None)
    if default_prompt_name is not None:
        return prompts.get(default_prompt_name) or None
    return None
