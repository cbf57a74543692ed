"""Slow reference of every mixer, from its definition."""

import math

import torch
from torch.nn import functional as F

# ---- PSLT -----------------------------------------------------------------------------------------------------------


def ladder_attention_oracle(net, x, value, padded=None):
    """The spec's definition on all pairs of pixels; `padded` = the map already holds attended padding."""
    batch, dim, height, width = x.shape
    m, heads = net.window_size, net.num_heads
    real_height, real_width = padded or (height, width)
    shift = net.shift if min(real_height, real_width) > m else 0
    segment = torch.tensor([[(i - shift % m) // m, (j - shift % m) // m] for i in range(height) for j in range(width)])
    place = torch.tensor([[i, j] for i in range(height) for j in range(width)])
    seen = (segment[:, None] == segment[None]).all(-1)
    offset = (place[:, None] - place[None] + m - 1).clamp(0, 2 * m - 2)
    bias = net.relative_position_bias_table[offset[..., 0] * (2 * m - 1) + offset[..., 1]].permute(2, 0, 1)

    tokens = x.flatten(2).transpose(1, 2)
    qkv = F.linear(tokens, net.qkv.weight.flatten(1), net.qkv.bias).chunk(2 if value is not None else 3, -1)
    values = qkv[2] if value is None else value.flatten(2).transpose(1, 2)
    out = []
    for h in range(heads):
        part = slice(h * dim // heads, (h + 1) * dim // heads)
        logits = qkv[0][..., part] @ qkv[1][..., part].transpose(1, 2) * (dim // heads) ** -0.5 + bias[h]
        out.append(logits.masked_fill(~seen, float("-inf")).softmax(-1) @ values[..., part])
    out = F.linear(torch.cat(out, -1), net.proj.weight.flatten(1), net.proj.bias)
    return out.transpose(1, 2).reshape(batch, dim, height, width)[:, :, :real_height, :real_width]


def light_ffn_oracle(ffn, x):
    for i, conv in enumerate(ffn):
        x = F.conv2d(x, conv.conv.weight, conv.conv.bias, padding=i % 2, groups=x.shape[1] if i == 1 else 1)
        x = F.gelu(x) if i < 2 else x
        norm = conv.norm
        x = F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=1e-5)
    return x


def layer_norm(norm, x):
    return F.layer_norm(x.permute(0, 2, 3, 1), (x.shape[1],), norm.weight, norm.bias, 1e-5).permute(0, 3, 1, 2)


def ladder_block_oracle(block, x):
    """Sec. 3.3's ladder, branch by branch, for the default options."""
    d, prev, outputs = x.shape[1] // len(block.branches), None, []
    for t, branch in enumerate(block.branches):
        part = x[:, t * d : (t + 1) * d]
        z = layer_norm(branch.norm1, part)
        p = ladder_attention_oracle(branch.attn, z, prev)
        p = p if prev is None else p + z
        u = part + p
        prev = u + light_ffn_oracle(branch.ffn, layer_norm(branch.norm2, u))
        outputs.append(prev)
    y = torch.cat(outputs, 1)
    gate = block.fusion.gate
    y = y * torch.sigmoid(F.conv2d(F.relu(F.conv2d(y, gate.fc1.weight, gate.fc1.bias)), gate.fc2.weight, gate.fc2.bias))
    return y + F.conv2d(y, block.fusion.mix.weight, block.fusion.mix.bias)


# ---- LVT ------------------------------------------------------------------------------------------------------------


def asa_oracle(u, mixer, rates, reduction, pad):
    """One pass on (B, H, W, C) with every score written out."""
    batch, height, width, dim = u.shape
    heads, d = mixer.num_heads, dim // mixer.num_heads

    def linear(layer, t):
        out = t @ layer.weight[:, :, 0, 0].T
        return out if layer.bias is None else out + layer.bias

    q = linear(mixer.q, u)
    if rates:
        kernel = mixer.atrous.weight[:, 0]
        branches = []
        for rate in rates:
            branch = torch.zeros_like(q)
            for a in range(3):
                for c in range(3):
                    for row in range(height):
                        for col in range(width):
                            r, s = row + rate * (a - 1), col + rate * (c - 1)
                            if 0 <= r < height and 0 <= s < width:
                                branch[:, row, col] += kernel[:, a, c] * q[:, r, s]
            branches.append(branch * branch.sigmoid())
        q = torch.stack(branches).sum(0)
    z = u
    if reduction > 1:
        rows, cols = max(1, height // reduction), max(1, width // reduction)
        if pad:
            rows, cols = -(-height // reduction), -(-width // reduction)
        padded = torch.zeros(batch, max(height, rows * reduction), max(width, cols * reduction), dim).to(u)
        padded[:, :height, :width] = u
        z = torch.zeros(batch, rows, cols, dim).to(u)
        for i in range(rows):
            for j in range(cols):
                cell = padded[:, i * reduction : (i + 1) * reduction, j * reduction : (j + 1) * reduction]
                z[:, i, j] = torch.einsum("bhwc,ochw->bo", cell, mixer.sr.conv.weight) + mixer.sr.conv.bias
        z = F.layer_norm(z, (dim,), mixer.sr.norm.weight, mixer.sr.norm.bias, 1e-5)
    k, v = linear(mixer.kv, z).flatten(1, 2).split(dim, -1)
    q = q.flatten(1, 2)
    out = []
    for head in range(heads):
        part = slice(head * d, (head + 1) * d)
        scores = q[..., part] @ k[..., part].transpose(1, 2) * d**-0.5
        out.append(scores.softmax(-1) @ v[..., part])
    return linear(mixer.proj, torch.cat(out, -1).view(batch, height, width, dim))


# ---- Pale -----------------------------------------------------------------------------------------------------------


def pale_oracle(attn, x, mixer, size, block=0):
    """The mixer from its definition: softmax attention over all tokens, restricted to the pairs that share a group."""
    height, width = x.shape[2:]
    y, z = torch.arange(height).repeat_interleave(width), torch.arange(width).repeat(height)
    n_r, n_c = math.ceil(height / size[0]), math.ceil(width / size[1])
    q, k, v = (project(x).flatten(2).transpose(1, 2) for project in (attn.q, attn.k, attn.v))

    def attend(channels, heads, allowed):
        q_, k_, v_ = (t[..., channels].unflatten(2, (heads, -1)).transpose(1, 2) for t in (q, k, v))
        logits = q_ @ k_.transpose(-1, -2) * q_.shape[-1] ** -0.5
        out = logits.masked_fill(~allowed, -math.inf).softmax(-1) @ v_
        return out.transpose(1, 2).flatten(2)

    def same(label):
        return label[:, None] == label[None, :]

    heads, everything = attn.num_heads, slice(None)
    first, second = slice(0, q.shape[2] // 2), slice(q.shape[2] // 2, None)
    if mixer == "global":
        out = attend(everything, heads, torch.ones(height * width, height * width, dtype=torch.bool))
    elif mixer == "sequential":
        out = attend(everything, heads, same(z % n_c) if block % 2 else same(y % n_r))
    elif mixer == "vanilla":
        n = max(n_r, n_c)
        in_pale = (y[None] % n == torch.arange(n)[:, None]) | (z[None] % n == torch.arange(n)[:, None])  # (N, tokens)
        out = (attend(everything, heads, in_pale[y % n]) + attend(everything, heads, in_pale[z % n])) / 2
    else:
        rows, columns = (y // size[0], z // size[1]) if mixer == "cross_shaped" else (y % n_r, z % n_c)
        out = torch.cat([attend(first, heads // 2, same(rows)), attend(second, heads // 2, same(columns))], -1)
    return attn.proj(out.transpose(1, 2).unflatten(2, (height, width)))


# ---- EMSNet ---------------------------------------------------------------------------------------------------------


def slow_pointwise(layer, x):
    y = torch.einsum("oc,bchw->bohw", layer.weight[:, :, 0, 0], x)
    return y if layer.bias is None else y + layer.bias[:, None, None]


def slow_depthwise(conv, x, stride=1):
    (kh, kw), (height, width) = conv.kernel_size, x.shape[2:]
    y = x.new_zeros(*x.shape[:2], -(-height // stride), -(-width // stride))
    for i in range(y.shape[2]):
        for j in range(y.shape[3]):
            for u in range(kh):
                for v in range(kw):
                    r, c = stride * i + u - kh // 2, stride * j + v - kw // 2
                    if 0 <= r < height and 0 <= c < width:
                        y[:, :, i, j] += conv.weight[:, 0, u, v] * x[:, :, r, c]
    return y


def conv_attention_oracle(attn, x, heads, mask_border):
    dim, height, width = x.shape[1:]
    d = dim // heads
    logits, value = slow_pointwise(attn.logits, slow_depthwise(attn.reduce, x, 2)), slow_pointwise(attn.value, x)
    out = torch.zeros_like(x)
    for i in range(logits.shape[2]):
        for j in range(logits.shape[3]):
            taps = [(2 * i + a - 1, 2 * j + b - 1) for a in range(3) for b in range(3)]
            real = [0 <= r < height and 0 <= c < width for r, c in taps]
            for h in range(heads):
                for q, (r, c) in enumerate(taps):
                    if not real[q]:
                        continue
                    start = (h * 9 + q) * 9
                    row = logits[:, start : start + 9, i, j].clone()
                    if mask_border:
                        row[:, [not inside for inside in real]] = float("-inf")
                    row = row.softmax(1)
                    for k, (kr, kc) in enumerate(taps):
                        if real[k]:
                            out[:, h * d : (h + 1) * d, r, c] += row[:, k, None] * value[:, h * d : (h + 1) * d, kr, kc]
    return slow_pointwise(attn.proj, out)


# ---- MAT ------------------------------------------------------------------------------------------------------------


def attention_oracle(q, k, v):
    """(heads, queries, d) attention: values and weights."""
    a = torch.softmax(q @ k.transpose(1, 2) / math.sqrt(q.shape[-1]), -1)
    return a @ v, a


def linear(layer, x):
    return x @ layer.weight.flatten(1).T + layer.bias


def mat_oracle(attn, x):
    """The mixer of one image (C, H, W), window by window without any padding; also the three attention maps."""
    dim, height, width = x.shape
    heads, m, merge = attn.num_heads, attn.window_size, getattr(attn, "token_merge", None)

    def split(t):  # (N, C) -> (heads, N, d)
        return t.reshape(len(t), heads, dim // heads).transpose(0, 1)

    def merged(t):  # (heads, N, d) -> (N, C)
        return t.transpose(0, 1).reshape(-1, dim)

    tokens = x.permute(1, 2, 0)
    local, queries = torch.zeros_like(tokens), torch.zeros_like(tokens)
    summaries, abstraction = [], []
    for top in range(0, height, m):
        for left in range(0, width, m):
            cell = (slice(top, top + m), slice(left, left + m))
            own = tokens[cell].reshape(-1, dim)
            n = len(own)
            if merge == "project":
                own = torch.cat([own, attn.token.reshape(1, dim)])
            q, k, v = (split(t) for t in linear(attn.qkv, own).chunk(3, dim=1))
            if merge == "query":
                q = torch.cat([q, attn.token[0]], 1)
            if merge == "qkv":
                q, k, v = (torch.cat([t, attn.token[0]], 1) for t in (q, k, v))
            out, weights = attention_oracle(q, k, v)
            local[cell] = merged(out)[:n].reshape(local[cell].shape)
            queries[cell] = merged(q)[:n].reshape(local[cell].shape)
            if merge:
                summaries.append(merged(out)[n])
                abstraction.append(weights[:, n])
    maps = {}
    if merge:
        q, k, v = (split(t) for t in linear(attn.mix_qkv, torch.stack(summaries)).chunk(3, dim=1))
        mixed, maps["mixing"] = attention_oracle(q, k, v)
        k, v = (split(t) for t in linear(attn.kv, linear(attn.mix_proj, merged(mixed))).chunk(2, dim=1))
        fused, maps["fusion"] = attention_oracle(split(queries.reshape(-1, dim)), k, v)
        local = local + merged(fused).reshape(local.shape)
        maps["abstraction"] = abstraction
    return linear(attn.proj, local).permute(2, 0, 1), maps
