"""Attention capture: how much the answer looks at each token, for every head, exactly.

The steps of `AttentionCapture.__call__`, with the same numbers in the code:
1. The model runs its own attention function, mask and kernel (sdpa, flash, eager): our function
   stands in front of it in the attention registry of transformers (`probing.models.front`) and
   calls it for the output.
2. For the answer tokens alone, in chunks, the softmax rows are computed from the same queries,
   keys and mask, in float32.
3. Each row is added to its trace's mass: mass[h, n] = Σ_{m ∈ F} a_{m→n}, the inner sum of the
   step score (AttnPO, section 3; docs/PAPER.md, eq. 1). On GPUs see `probing.attention.fused`.
4. Where the answer ends each trace, the kernel of (1) gets the queries before it alone, and the
   rows times the values are the rest of the output (`probing.models.split`).
5. After the deepest layer needed the forward pass stops.
What one pass collects is a `CapturePass`. No T × T matrix is made: beyond the plain forward there
is one chunk of rows and the masses.

A capture proves itself before it is used: the rows times the values must equal the output of the
model's own kernel in every layer (`probing.attention.rows`), and the model's output must stay
what it was; with a split output too, or nothing is split. A family whose attention does not go
through the registry, or does more than a softmax over keys (and sinks), is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from probing.attention.fused import AnswerRows, FusedMasses
from probing.attention.rows import Rows, answer_mass, rows_against_kernel
from probing.choices import Head
from probing.errors import ModelError, NotFiniteError
from probing.models.front import AttentionCall, InFront, Workspace, check_heads, fusible, own_output
from probing.models.lengths import Lengths, in_eval
from probing.models.proof import PROOF_TOLERANCE, Difference, proof_input, relative
from probing.models.split import SplitOutput, split_at, split_start


class _Enough(Exception):
    """Leaves the forward pass after the deepest layer needed."""


class AttentionCapture(InFront):
    """Captures the attention mass of the answer, for all heads or for chosen ones.

    Args:
        model: a loaded transformers model. It is put into eval mode while the capture runs.
        heads: `(layer, head)` pairs in the order of the result; None takes every head.
        chunk_bytes: memory of a chunk of rows; default 4 MiB on CPU, 256 MiB elsewhere.
        prove: check at once that the capture is real (see `prove`).
        early_exit: stop the forward after the deepest layer needed. Turn it off where modules
            are sharded (FSDP, DeepSpeed ZeRO-3), whose hooks must see the whole forward.

    Raises:
        ModelError: the model's attention cannot be captured, or a head does not exist.

    Example:
        >>> with AttentionCapture(model, heads=[(16, 2)]) as capture:  # doctest: +SKIP
        ...     mass = capture(input_ids, answer)  # (batch, 1, token)
    """

    def __init__(
        self,
        model: torch.nn.Module,
        heads: Sequence[Head] | None = None,
        *,
        chunk_bytes: int | None = None,
        prove: bool = True,
        early_exit: bool = True,
    ) -> None:
        super().__init__(model)
        self.early_exit = early_exit
        self.lengths = Lengths.of(model)  # which traces may share a pass
        self.proven = 0  # tokens of the longest trace that it was proven on
        self.split: frozenset[int] = frozenset()  # layers that were proven with their output split
        self.fused = FusedMasses()  # by which way the masses come, and why
        self._workspace = Workspace(chunk_bytes)
        self._pass: CapturePass | None = None
        self.layers: dict[int, int] = {}  # attention layer → its number of heads
        self._discover()
        self.heads: list[Head] = self._choose(heads)
        if prove:
            self.prove()

    def __call__(
        self,
        input_ids: Int[Tensor, "batch token"],
        answer: Bool[Tensor, "batch token"],
        attention_mask: Int[Tensor, "batch token"] | None = None,
        *,
        forward: Callable[..., Any] | None = None,
    ) -> Float[Tensor, "batch head token"]:
        """One forward pass without gradient.

        Args:
            input_ids: token ids, padded to one length on either side.
            answer: the answer tokens F of each trace (any subset of its tokens).
            attention_mask: 1 for real tokens. May be left out where padding is on the right
                only: no real token can look at it, and the kernel is faster without a mask.
            forward: called instead of the trunk, for example a DDP- or FSDP-wrapped model.

        Returns:
            mass[b, i, n] = Σ_{m ∈ F_b} a_{m→n} for the i-th of `self.heads`, in float32. A row
            of softmax sums to one, hence mass sums to |F_b| over n, but for what attention sinks
            take.

        Raises:
            ModelError: the model made no use of the registry in this pass.
            RuntimeError: the capture is not entered.
            ValueError: an answer token lies in the padding.
        """
        if not self._previous:
            raise RuntimeError("use the capture within a `with` block")
        if attention_mask is not None and bool((answer & (attention_mask == 0)).any()):
            raise ValueError("an answer token lies in the padding")
        # Left of its tokens a trace holds what no kernel gives alike: there nothing is split.
        right = attention_mask is None or bool(attention_mask[:, 0].all())
        split, early = self.split if right else frozenset(), self.early_exit
        given = (answer, self.heads, self._workspace, self.fused)
        collected = CapturePass(*given, early_exit=early, split=split)
        self._run(collected, input_ids, attention_mask, forward or self.trunk)
        return collected.mass()

    def prove(
        self,
        input_ids: Int[Tensor, "batch token"] | None = None,
        answer: Bool[Tensor, "batch token"] | None = None,
        attention_mask: Int[Tensor, "batch token"] | None = None,
    ) -> float:
        """Check that the captured attention is the one that the model used.

        In every layer, Σ_n a_{m→n} v_n from the captured rows must equal the output of the
        model's own kernel for those rows; and the model's last hidden state must be the same
        with and without the capture. Without arguments two random sequences are used, one of
        them padded on the left. Give real ones to check long windows too. Both hold for a split
        output as well, in the layers of `split` afterwards; where they do not, `split` is empty
        and the kernel gives the whole output.

        Returns:
            The largest relative difference over the layers, on float32 copies.

        Raises:
            ModelError: with the layer and the difference, where they are not the same; a
                NotFiniteError where the model's numbers are not finite.
            ValueError: no token of the answer is chosen.
        """
        device = self._device()
        given = input_ids is not None and answer is not None
        if input_ids is None or answer is None:
            input_ids, answer, attention_mask = proof_input(self._vocabulary(), device)
        if not answer.any():
            raise ValueError("a proof needs at least one row: no token of the answer is chosen")
        collected = CapturePass(answer, self.heads, self._workspace, self.fused, verify=True)
        change = self._verified(collected, input_ids, attention_mask)
        name, dtype = type(self.model).__name__, self.dtype
        for layer, difference in collected.differences.items():
            difference.check(name, layer, dtype)
        if not change <= PROOF_TOLERANCE.get(dtype, 1e-4):
            raise ModelError(f"{name}: its output changes by {change:.2g} under the capture.")
        self._prove_split(input_ids, answer, attention_mask if given else None)
        self.proven = max(self.proven, input_ids.shape[1])
        return max(difference.exact for difference in collected.differences.values())

    def _prove_split(
        self, input_ids: Tensor, answer: Tensor, attention_mask: Tensor | None
    ) -> None:
        """Learn which layers may be split: all that the rule splits here, or none."""
        own = (answer, self.heads, self._workspace, self.fused)
        collected = CapturePass(*own, verify=True, split=frozenset(self.layers))
        if attention_mask is not None and not attention_mask[:, 0].all():
            return
        change = self._verified(collected, input_ids, attention_mask)
        if not collected.cuts:
            return
        same = change <= PROOF_TOLERANCE.get(self.dtype, 1e-4) and all(
            difference.holds(self.dtype) for difference in collected.differences.values()
        )
        self.split = self.split | collected.cuts if same else frozenset()

    def _verified(
        self, collected: CapturePass, input_ids: Tensor, attention_mask: Tensor | None
    ) -> float:
        """Run a pass that verifies; how far it moves the last hidden state.

        Raises:
            NotFiniteError: this state is not finite without the capture.
        """
        before = self._hidden(input_ids, attention_mask, self.trunk)
        with nullcontext() if self._previous else self:
            after = self._run(collected, input_ids, attention_mask, self.trunk)
        real = slice(None) if attention_mask is None else attention_mask.bool()
        if not before[real].isfinite().all():
            what = f"{type(self.model).__name__}: its last hidden state is"
            raise NotFiniteError.of(what, before.dtype)
        return relative(after[real], before[real])

    def _discover(self) -> None:
        """Learn which layers call the registry, and how many heads each has."""
        ids = torch.zeros((1, 4), dtype=torch.long, device=self._device())
        collected = CapturePass(torch.zeros_like(ids, dtype=torch.bool), [])
        with self:
            self._run(collected, ids, None, self.trunk)
        self.layers = dict(sorted(collected.layers.items()))

    def _choose(self, heads: Sequence[Head] | None) -> list[Head]:
        if heads is None:
            return [(layer, head) for layer, n in self.layers.items() for head in range(n)]
        if not heads or len(set(heads)) != len(heads):
            raise ModelError(f"choose at least one head and none twice, got {list(heads)}")
        check_heads(type(self.model).__name__, self.layers, heads)
        return [(int(layer), int(head)) for layer, head in heads]

    @torch.no_grad()
    def _run(
        self,
        collected: CapturePass,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        forward: Callable[..., Any],
    ) -> Tensor:
        """One forward pass; its last hidden state, or nothing after an early exit."""
        self._pass = collected
        hidden = torch.empty(0)
        try:
            hidden = self._hidden(input_ids, attention_mask, forward)
        except _Enough:
            pass
        finally:
            self._pass = None
        if not collected.layers:
            raise ModelError(
                f"{type(self.model).__name__} does not call the attention registry of "
                "transformers, so its attention cannot be captured. Use a model class of "
                "transformers itself (no remote code), loaded with sdpa, flash or eager attention."
            )
        return hidden

    @torch.no_grad()
    def _hidden(
        self, input_ids: Tensor, attention_mask: Tensor | None, forward: Callable[..., Any]
    ) -> Tensor:
        """The last hidden state, in eval mode; the model's mode is given back."""
        given = {"input_ids": input_ids, "attention_mask": attention_mask, "use_cache": False}
        with in_eval(self.model):
            return forward(**given)[0]

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the model."""
        return next(self.trunk.parameters()).dtype

    @property
    def _busy(self) -> bool:
        return self._pass is not None

    def _attend(
        self, call: AttentionCall, value: Tensor, stock: Callable[..., Any] | None
    ) -> Tensor:
        collected = self._pass
        assert collected is not None  # `_busy` said so
        layer = collected.enter_layer(call)
        last = collected.finished(layer)
        cut = None if last else collected.cut_of(layer, call)
        split = None if cut is None else SplitOutput(call, value, cut, stock, self._workspace)  # 4
        collected.add(layer, call, split)  # 2, 3
        if last:
            raise _Enough  # 5
        if split is None or collected.verifying:
            whole = own_output(call, value, stock, self._workspace.budget(call.query.device))  # 1
            collected.verify(layer, call, value, whole, stock, split)
            return whole if split is None else split.output
        return split.output


class CapturePass:
    """What one forward pass collects: positions of the answer, masses, proofs.

    Args:
        answer: the answer tokens of each trace.
        heads: `(layer, head)` in the order of the result; none: only learn the layers.
        workspace: where chunks are computed.
        fused: whether kernels give the masses, and what is known of them.
        early_exit: stop after the deepest layer needed.
        verify: hold each layer's rows against the kernel's output.
        split: layers whose output may be split, see `probing.models.split`.
    """

    def __init__(
        self,
        answer: Bool[Tensor, "batch token"],
        heads: Sequence[Head],
        workspace: Workspace | None = None,
        fused: FusedMasses | None = None,
        *,
        early_exit: bool = False,
        verify: bool = False,
        split: frozenset[int] = frozenset(),
    ) -> None:
        self.heads, self.tokens = heads, answer.shape[1]
        self.workspace, self.fused = workspace or Workspace(), fused or FusedMasses()
        self.early_exit = early_exit and bool(heads)
        self.layers: dict[int, int] = {}  # those entered, and the number of their heads
        self.differences: dict[int, Difference] = {}
        # Positions of the answer of each trace; planned on the CPU, whatever the device.
        self.rows: list[Int[Tensor, "row"]] = [row.nonzero()[:, 0] for row in answer.cpu()]
        self.answers = AnswerRows(self.rows, self.tokens)  # for the kernels
        self.chosen: dict[int, list[int]] = {}  # layer → places in `heads`
        for place, (layer, _) in enumerate(heads):
            self.chosen.setdefault(layer, []).append(place)
        self.masses: dict[int, Tensor] = {}
        self.verifying, self.split = verify, split
        self.start = split_start(self.rows, self.tokens) if split else None
        self.cuts: frozenset[int] = frozenset()  # layers that were split

    def enter_layer(self, call: AttentionCall) -> int:
        """Note the layer of a call and its heads; its number, or that of the call in the pass.

        Raises:
            ModelError: a second call in the same layer, for which the layer × head table has no
                place; or keys that are not the tokens (compressed ones, or those of a cache).
        """
        number = getattr(call.module, "layer_idx", None)
        layer = len(self.layers) if number is None else int(number)
        if layer in self.layers:
            raise ModelError(
                f"layer {layer} calls its attention more than once in a pass (cross-attention or "
                "shared layers): this family cannot be probed"
            )
        queries, keys = call.query.shape[2], call.key.shape[2]
        if queries != keys:
            raise ModelError(
                f"layer {layer} has {queries} queries and {keys} keys: the capture "
                "needs a key for every token of the sequence, in one pass and without a cache"
            )
        self.layers[layer] = call.query.shape[1]
        return layer

    def finished(self, layer: int) -> bool:
        """Whether no later layer is needed."""
        return self.early_exit and layer >= max(self.chosen)

    def cut_of(self, layer: int, call: AttentionCall) -> int | None:
        """The query from which on this layer's output is split; None: it is not."""
        chosen = len(self.chosen.get(layer, ()))
        return split_at(call, self.start, chosen) if layer in self.split else None

    def add(self, layer: int, call: AttentionCall, split: SplitOutput | None = None) -> None:
        """Sum the answer's softmax rows of the chosen heads of this layer; fill its output."""
        heads = [self.heads[place][1] for place in self.chosen.get(layer, ())]
        if not heads:
            return
        everything = heads == list(range(self.layers[layer]))  # no copy of queries and keys
        chosen = None if everything or split else heads

        def by_rows() -> Tensor:
            return answer_mass(Rows(call, chosen, self.workspace), self.rows, self.tokens, split)

        if split:
            self.cuts |= {layer}
            self.masses[layer] = by_rows() if everything else by_rows()[:, heads]
        elif fusible(call.query):
            self.masses[layer] = self.fused.mass(layer, call, heads, self.answers, by_rows)
        else:
            self.masses[layer] = by_rows()

    def verify(
        self,
        layer: int,
        call: AttentionCall,
        value: Tensor,
        output: Tensor,
        stock: Callable[..., Any] | None,
        split: SplitOutput | None = None,
    ) -> None:
        """Hold rows × values of all heads against the kernel; see `rows_against_kernel`. A split
        output is held against the kernel's whole one."""
        if not self.verifying:
            return
        found = rows_against_kernel(layer, call, value, output, stock, self.rows, self.workspace)
        if split is not None:
            found = found._replace(rough=max(found.rough, relative(split.output, output)))
        self.differences[layer] = found

    def mass(self) -> Float[Tensor, "batch head token"]:
        """The masses of all layers in the order of `heads`.

        Raises:
            ModelError: a layer was not reached.
        """
        missing = sorted(set(self.chosen) - set(self.masses))
        if missing:
            raise ModelError(f"layers {missing} were not reached in this pass")
        device = next(iter(self.masses.values())).device
        found = torch.cat([self.masses[layer].to(device) for layer in self.chosen], dim=1)
        order = [place for places in self.chosen.values() for place in places]
        return found if order == sorted(order) else found[:, torch.tensor(order).argsort()]
