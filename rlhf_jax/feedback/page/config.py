"""The options of ``python -m rlhf_jax.feedback serve``."""

import dataclasses
import ipaddress
from pathlib import Path
from urllib.parse import urlsplit

from rlhf_jax.errors import UserError
from rlhf_jax.feedback.page.items import Mode
from rlhf_jax.sampling import SamplingConfig


@dataclasses.dataclass(frozen=True)
class ServeConfig:
    """Serves a page on which people rank or rate completions."""

    run_dir: Path = Path("runs/labels")
    """Where the labels are kept; the same one goes on with them."""
    completions: Path | None = None
    """Rows with prompt and completions (or one completion, to rate)."""
    prompts: Path | None = None
    """Rows with a prompt, which --policy answers."""
    policy: Path | None = None
    """Run directory, checkpoint of transformers or hub id; samples completions."""
    sampling: SamplingConfig = SamplingConfig(max_new_tokens=64, completions=4)
    """How it samples them."""
    mode: Mode = "ranking"
    """Rank the completions of a prompt, or rate each: yes or no, or 1 … scale."""
    scale: int = 5
    """The best rating, with --mode scale."""
    annotators: tuple[str, ...] = ("annotator",)
    """Their names; each gets a link. Who is left out at a later start is locked out."""
    votes: int = 1
    """Annotators that judge each item."""
    repeats: float = 0.0
    """Share of an annotator's items that come again, to measure self-agreement."""
    instructions: Path | None = None
    """What annotators read: your text, in simple Markdown; none takes the default."""
    host: str = "127.0.0.1"
    """Address to listen on."""
    port: int = 8000
    """Port to listen on; 0 takes a free one."""
    public: tuple[str, ...] = ()
    """Other addresses of the page, as https://labels.example.org behind a proxy."""
    seed: int = 0
    """Of sampling, of the order of completions and of what is repeated."""

    def __post_init__(self):
        rules = [
            ("scale", 2 <= self.scale <= 10, "2 … 10"),
            ("annotators", 0 < len(self.annotators), "at least one name"),
            (
                "annotators",
                len({*self.annotators}) == len(self.annotators),
                "each name once",
            ),
            ("votes", self.votes >= 1, "at least 1"),
            ("repeats", 0 <= self.repeats <= 1, "a share from 0 to 1"),
            ("port", 0 <= self.port < 65536, "0 … 65535"),
        ]
        for name, holds, expected in rules:
            if not holds:
                raise UserError(
                    f"{name} = {dataclasses.asdict(self)[name]}: expected {expected}"
                )
        if (self.prompts is None) != (self.policy is None):
            raise UserError("--prompts and --policy: expected both or none")
        if self.votes > len(self.annotators):
            raise UserError(
                f"votes = {self.votes}: expected at most the number of annotators, "
                f"{len(self.annotators)}; name more, or ask for fewer votes"
            )
        for address in self.public:
            _check_origin(address)
        if not self.public and not _is_loopback(self.host):
            raise UserError(
                f"host = {self.host}: others can reach it; name the address that they "
                "use with --public, as https://labels.example.org"
            )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _check_origin(address: str) -> None:
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or address != (
        f"{parts.scheme}://{parts.netloc}".lower()
    ):
        raise UserError(
            f"public = {address}: expected an origin without a path, in small letters, "
            "such as https://labels.example.org or http://192.168.1.5:8000"
        )
