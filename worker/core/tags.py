"""The tags around thinking and tool calls, the same in all families and in all templates."""

THINK, THINK_END = "<think>", "</think>"
CALL, CALL_END = "<tool_call>", "</tool_call>"
