"""What vLLM calls in each of its processes (entry point `vllm.general_plugins`)."""

PARSER = "abstract"  # vllm serve --reasoning-parser abstract


def register() -> None:
    """Makes the reasoning parser known by name; it is loaded when it is asked for."""
    from vllm.reasoning import ReasoningParserManager

    ReasoningParserManager.register_lazy_module(
        PARSER, "abscot.generation.reasoning_parser", "AbstractReasoningParser"
    )
