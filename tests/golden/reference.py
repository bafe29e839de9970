"""An independent Stride Memory Transformer in plain PyTorch, for golden tensors: written from the model's definition
(docs/model.md), one token at a time, no caches, nothing shared with the C++.

    python3 tests/golden/reference.py check  MODEL_DIR FIXTURE      # compares itself with a fixture
    python3 tests/golden/reference.py random OUT_DIR --seed=7       # a random model of odd shapes and its fixture
    python3 tests/golden/reference.py make   MODEL_DIR IDS_FILE OUT # a fixture of given ids (JSON array)

Needs torch, numpy and safetensors. Fixtures hold what `smt_model verify` reads.
"""
import argparse, json, math, os
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file


class Model:
    def __init__(self, folder, dtype=torch.float32):
        self.c = json.load(open(os.path.join(folder, 'config.json')))
        self.w = {k: v.to(dtype) for k, v in load_file(os.path.join(folder, 'model.safetensors')).items()}
        c = self.c
        self.n, self.m, self.s, self.d = c['n_ssm_outputs'], c['m_input_tokens'], c['stride'], c['d_model']
        assert c['transformer']['kind'] == 'gpt2' and c['ssm']['kind'] == 'mamba'
        self.reset()

    def reset(self):
        ssm = self.c['ssm']
        inner = ssm['expand'] * self.d
        self.t, self.tokens, self.memory = 0, [], []
        self.conv = [torch.zeros(inner, ssm['d_conv']) for _ in range(ssm['n_layer'])]
        self.state = [torch.zeros(inner, ssm['d_state']) for _ in range(ssm['n_layer'])]
        self.outputs, self.pool_weights = [], []

    def mamba(self, x):
        eps, rank, ns = self.c['ssm']['rms_norm_epsilon'], self.c['ssm']['dt_rank'], self.c['ssm']['d_state']
        rms = lambda v, g: v * torch.rsqrt(v.pow(2).mean() + eps) * g
        for i in range(self.c['ssm']['n_layer']):
            p = f'ssm.backbone.layers.{i}.'
            w = lambda name: self.w[p + 'mixer.' + name]
            u, z = (w('in_proj.weight') @ rms(x, self.w[p + 'norm.weight'])).chunk(2)
            self.conv[i] = torch.cat([self.conv[i][:, 1:], u[:, None]], 1)
            u = F.silu((self.conv[i] * w('conv1d.weight')[:, 0]).sum(1) + w('conv1d.bias'))
            dt, B, C = (w('x_proj.weight') @ u).split([rank, ns, ns])
            dt = F.softplus(w('dt_proj.weight') @ dt + w('dt_proj.bias'))
            A = -torch.exp(w('A_log'))
            self.state[i] = torch.exp(dt[:, None] * A) * self.state[i] + dt[:, None] * B[None] * u[:, None]
            y = (self.state[i] * C[None]).sum(1) + w('D') * u
            x = x + w('out_proj.weight') @ (y * F.silu(z))
        return rms(x, self.w['ssm.backbone.norm_f.weight'])

    def write(self):
        rows = [self.w['transformer.wte.weight'][i] for i in self.tokens[-self.m:]]
        if self.c.get('pool_scope', 'window') == 'window':
            rows = self.memory + rows
        rows = torch.stack(rows)
        q = self.w['pooling.query.weight'] @ rows.mean(0)
        weights = torch.softmax((rows @ self.w['pooling.key.weight'].T) @ q / math.sqrt(self.d), 0)
        out = self.mamba(weights @ rows)
        self.pool_weights.append(F.pad(weights, (0, self.n + self.m - len(rows))))
        self.outputs.append(out)
        self.memory = (self.memory + [out])[-self.n:]

    def window_logits(self, tokens):
        c, n, H = self.c['transformer'], self.n, self.c['transformer']['n_head']
        wpe, wte = self.w['transformer.wpe.weight'], self.w['transformer.wte.weight']
        rows = [v + wpe[i] for i, v in enumerate(self.memory)] + [wte[t] + wpe[n + j] for j, t in enumerate(tokens)]
        x = torch.stack(rows)
        L = len(rows)
        mask = torch.ones(L, L).tril().bool()
        for i in range(c['n_layer']):
            p = f'transformer.h.{i}.'
            w = lambda name: self.w[p + name]
            ln = lambda v, name: F.layer_norm(v, (self.d,), w(name + '.weight'), w(name + '.bias'), c['layer_norm_epsilon'])
            q, k, v = (ln(x, 'ln_1') @ w('attn.c_attn.weight') + w('attn.c_attn.bias')).view(L, 3, H, -1).permute(1, 2, 0, 3)
            a = (q @ k.transpose(1, 2) / math.sqrt(self.d // H)).masked_fill(~mask, -math.inf).softmax(-1) @ v
            x = x + a.transpose(0, 1).reshape(L, -1) @ w('attn.c_proj.weight') + w('attn.c_proj.bias')
            h = F.gelu(ln(x, 'ln_2') @ w('mlp.c_fc.weight') + w('mlp.c_fc.bias'), approximate='tanh')
            x = x + h @ w('mlp.c_proj.weight') + w('mlp.c_proj.bias')
        x = F.layer_norm(x[-1], (self.d,), self.w['transformer.ln_f.weight'], self.w['transformer.ln_f.bias'], c['layer_norm_epsilon'])
        return (wte if self.c.get('tie_word_embeddings', True) else self.w['lm_head.weight']) @ x

    def step(self, token, policies=('hop', 'slide')):
        self.t += 1
        self.tokens.append(int(token))
        if self.t % self.s == 0:
            self.write()
        out = []
        for policy in policies:
            if policy == 'slide':
                seen = self.tokens[-self.m:]
            else:
                written = self.t - self.t % self.s
                first = max(0, written - (self.m - self.s)) if written else 0
                seen = self.tokens[first:]
            out.append(self.window_logits(seen))
        return out


@torch.inference_mode()
def fixture(model, ids, greedy=32):
    t, policies = {}, ['slide'] if model.s == model.m else ['hop', 'slide']
    model.reset()
    logits = [model.step(i, policies) for i in ids]
    t['input_ids'] = torch.tensor(ids, dtype=torch.int32)
    for p, policy in enumerate(policies):
        t['logits_' + policy] = torch.stack([l[p] for l in logits])
    if model.outputs:
        t['ssm_outputs'], t['pool_weights'] = torch.stack(model.outputs), torch.stack(model.pool_weights)
    for i in range(model.c['ssm']['n_layer']):
        t[f'ssm_conv.{i}'], t[f'ssm_state.{i}'] = model.conv[i].clone(), model.state[i].clone()
    for p, policy in enumerate(policies):
        model.reset()
        for i in ids:
            last = model.step(i, [policy])[0]
        out = []
        for _ in range(greedy):
            out.append(int(last.argmax()))
            last = model.step(out[-1], [policy])[0]
        t['greedy_' + policy] = torch.tensor(out, dtype=torch.int32)
    return {k: v.contiguous() for k, v in t.items()}


def random_model(folder, seed):
    g = torch.Generator().manual_seed(seed)
    pick = lambda *a: a[int(torch.randint(len(a), (1,), generator=g))]
    heads = pick(1, 2, 3, 4)
    d, m = heads * pick(4, 6, 10, 16), pick(3, 7, 20, 33)
    s = pick(*[v for v in (1, 2, 3, 5, 8) if v < m])
    n, V = pick(1, 2, 5, 9), pick(31, 97, 300)
    L, M, ds, dc, rank = pick(1, 2, 3), pick(1, 2, 4), pick(1, 4, 16), pick(1, 2, 4), pick(1, 3, 8)
    tied = pick(True, False)
    c = dict(model_type='stride_hybrid', vocab_size=V, d_model=d, n_ssm_outputs=n, m_input_tokens=m, stride=s, window_policy='hop',
             pool_scope=pick('window', 'tokens'), tie_word_embeddings=tied,
             transformer=dict(kind='gpt2', n_layer=L, n_head=heads, n_positions=n + m + 3, layer_norm_epsilon=1e-5),
             ssm=dict(kind='mamba', n_layer=M, d_state=ds, d_conv=dc, expand=2, dt_rank=rank, rms_norm_epsilon=1e-5))
    r = lambda *sh, std=0.15: torch.randn(*sh, generator=g) * std
    e = 2 * d
    w = {'transformer.wte.weight': r(V, d, std=0.5), 'transformer.wpe.weight': r(n + m + 3, d), 'pooling.query.weight': r(d, d), 'pooling.key.weight': r(d, d),
         'transformer.ln_f.weight': 1 + r(d), 'transformer.ln_f.bias': r(d), 'ssm.backbone.norm_f.weight': 1 + r(d)}
    if not tied:
        w['lm_head.weight'] = r(V, d)
    for i in range(L):
        p = f'transformer.h.{i}.'
        for name, sh in (('ln_1.weight', (d,)), ('ln_1.bias', (d,)), ('ln_2.weight', (d,)), ('ln_2.bias', (d,)), ('attn.c_attn.weight', (d, 3 * d)),
                         ('attn.c_attn.bias', (3 * d,)), ('attn.c_proj.weight', (d, d)), ('attn.c_proj.bias', (d,)), ('mlp.c_fc.weight', (d, 4 * d)),
                         ('mlp.c_fc.bias', (4 * d,)), ('mlp.c_proj.weight', (4 * d, d)), ('mlp.c_proj.bias', (d,))):
            w[p + name] = r(*sh) + (1 if 'ln_' in name and 'weight' in name else 0)
    for i in range(M):
        p = f'ssm.backbone.layers.{i}.'
        w[p + 'norm.weight'] = 1 + r(d)
        for name, sh in (('in_proj.weight', (2 * e, d)), ('conv1d.weight', (e, 1, dc)), ('conv1d.bias', (e,)), ('x_proj.weight', (rank + 2 * ds, e)),
                         ('dt_proj.weight', (e, rank)), ('dt_proj.bias', (e,)), ('D', (e,)), ('out_proj.weight', (d, e))):
            w[p + 'mixer.' + name] = r(*sh)
        w[p + 'mixer.A_log'] = torch.log(torch.arange(1, ds + 1).float()).repeat(e, 1)
    os.makedirs(folder, exist_ok=True)
    json.dump(c, open(os.path.join(folder, 'config.json'), 'w'), indent=1)
    save_file({k: v.contiguous() for k, v in w.items()}, os.path.join(folder, 'model.safetensors'))
    length = pick(1, s, s + 1, 3 * s - 1 or 1, 4 * s, 61, 130)
    return c, [int(v) for v in torch.randint(V, (length,), generator=g)]


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument('command', choices=['check', 'random', 'make'])
    ap.add_argument('paths', nargs='+')
    ap.add_argument('--seed', type=int, default=0)
    a = ap.parse_args()
    if a.command == 'check':
        want, model = load_file(a.paths[1]), Model(a.paths[0])
        got = fixture(model, want['input_ids'].tolist(), len(want.get('greedy_hop', want['greedy_slide'])))
        for k, v in want.items():
            print(f'{k:16} largest difference {float((got[k].double() - v.double()).abs().max()):.3g}')
    elif a.command == 'random':
        _, ids = random_model(a.paths[0], a.seed)
        save_file(fixture(Model(a.paths[0]), ids), os.path.join(a.paths[0], 'fixture.safetensors'))
    else:
        save_file(fixture(Model(a.paths[0]), json.load(open(a.paths[1]))), a.paths[2])


if __name__ == '__main__':
    main()
