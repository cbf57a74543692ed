"""EMSNet: 1x1 and transposed convolutions on maps, unfold and fold, scores written out."""

from torch import Tensor
from torch.nn import functional as F

from vitrail.models.emsnet import ConvAttention, GlobalAttention, Whiten

from .tokens import attend, heads_of, to_map, to_tokens


class ReferenceWhiten(Whiten):
    """Eq. 3.1: the mean over channels leaves the output, not the weight."""

    def forward(self, x: Tensor) -> Tensor:
        x = F.conv2d(x, self.weight)
        return x - x.mean(1, keepdim=True)


class ReferenceConvAttention(ConvAttention):
    """C-MHSA (Eq. 3.9, 3.10)."""

    def forward(self, x: Tensor) -> Tensor:
        batch, dim, height, width = x.shape
        heads = self.num_heads
        logits = self.logits(self.reduce(x)).reshape(batch, heads, 9, 9, -1)
        attn = logits.permute(0, 4, 1, 2, 3).softmax(dim=-1)  # (B, L, heads, 9, 9)
        v = F.unfold(self.value(x), 3, padding=1, stride=2)  # (B, C * 9, L)
        v = v.reshape(batch, heads, dim // heads, 9, -1).permute(0, 4, 1, 3, 2)
        out = (attn @ v).permute(0, 2, 4, 3, 1).reshape(batch, dim * 9, -1)
        return self.proj(F.fold(out, (height, width), 3, padding=1, stride=2))


class ReferenceGlobalAttention(GlobalAttention):
    """G-MHSA (Eq. 3.6)."""

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = heads_of(to_tokens(self.qkv(x)), 3, self.num_heads)
        return self.proj(to_map(attend(q, k, v), *x.shape[2:]))
