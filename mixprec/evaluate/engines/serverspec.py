"""What a recipe says of a server."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, TypeVar

from pydantic import BaseModel, ConfigDict, Field

if TYPE_CHECKING:
    from mixprec.evaluate.engines.openai import Server

ServerSpecT = TypeVar("ServerSpecT", bound="ServerSpec")


class ServerSpec(BaseModel):
    """A model behind a server with OpenAI's protocol, and how it is asked."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    url: str = Field(min_length=1, description="a server with OpenAI's protocol, http://host:port/v1")
    model: str = Field(min_length=1, description="the model, as the server names it")
    key_variable: str = Field("OPENAI_API_KEY", description="environment variable with the server's key")
    concurrency: int = Field(8, ge=1, description="requests to the server at once")
    timeout: float = Field(3600.0, gt=0, description="seconds for an answer")
    retries: int = Field(6, ge=0, description="times that a request is sent again which the server failed")

    @property
    def secret(self) -> str | None:
        """The server's key, None where it needs none."""
        return os.environ.get(self.key_variable) or None

    @property
    def server(self) -> Server:
        """As engines take it."""
        from mixprec.evaluate.engines.openai import Server  # an HTTP client, which reading a recipe doesn't need

        return Server(
            self.url,
            self.model,
            self.secret,
            concurrency=self.concurrency,
            timeout=self.timeout,
            retries=self.retries,
        )


def of_a_recipe(spec: ServerSpecT) -> ServerSpecT:
    """``spec`` as a recipe says it, which may be a stranger's and names the address that the key is sent to: it can
    name no other secret of this machine. Raises ValueError."""
    if not spec.key_variable.endswith("API_KEY"):
        raise ValueError(
            f"key_variable: {spec.key_variable}: a recipe can send no variable away whose name doesn't end with "
            "API_KEY; put the key into OPENAI_API_KEY for this run, and leave key_variable out"
        )
    return spec
