"""The base of all values of a request: frozen, of known fields."""

from pydantic import BaseModel, ConfigDict


class Value(BaseModel):
    """A frozen value; fields are validated where it is made."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, hide_input_in_errors=True)
