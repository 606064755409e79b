"""Builds the pretraining of a masked diffusion language model."""

import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import ml_collections
import optax

from experiments.common import fields as fields_lib
from experiments.common import metrics as metrics_lib
from experiments.common import plots
from experiments.masked_lm import corpora
from jdiff import ctmc, elbo, nets, training
from jdiff.nets import llada

MASK_LAWS = {"count": ctmc.count_masks, "bernoulli": ctmc.bernoulli_masks}

NETWORKS = ("transformer", "llada", "mlp", "dilated")

POLICIES = {
  "": None,
  "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}
"""What of a block is kept for the backward pass, where it is recomputed."""

EVAL_MASKS = 8
"""Masks a sequence in evaluations."""


def build(
  config: ml_collections.ConfigDict, corpus: corpora.Corpus | None = None
) -> training.Experiment:
  """Joins data, network and masked cross-entropy into one experiment.

  Args:
    config: A config of `experiments/masked_lm/`.
    corpus: What to train on; by default what `config.data` names.

  Raises:
    ValueError: If a field's value is unknown or does not fit the others.
    FileNotFoundError: If the data must be prepared first.
  """
  fields_lib.check(config)
  _check(config)
  corpus = corpora.load(**config.data) if corpus is None else corpus
  network = make_network(config, corpus)
  loss = functools.partial(
    elbo.masked_cross_entropy,
    num_prompt=corpus.num_prompt,
    **network_options(config, network, corpus),
  )
  law = MASK_LAWS[config.mask_law](config.num_masks)
  optimizer = optax.chain(
    optax.clip_by_global_norm(config.max_grad_norm),
    optax.adamw(
      optax.warmup_cosine_decay_schedule(
        0.0,
        config.learning_rate,
        min(config.warmup_steps, config.num_steps - 1),
        config.num_steps,
        0.1 * config.learning_rate,
      ),
      weight_decay=config.weight_decay,
    ),
  )
  num_learnt = corpus.length - corpus.num_prompt

  def init(key):
    key_params, key_state = jax.random.split(key)
    return training.create(key_state, network.init(key_params), optimizer)

  def step(state, tokens):
    keys = training.example_keys(training.step_key(state), tokens.shape[0])

    def objective(params):
      nll, _ = loss(params, keys, tokens, draw_masks=law)
      return nll.mean() / num_learnt

    value, grads = jax.value_and_grad(objective)(state.params)
    metrics = {
      "loss": value,
      "grad_norm": optax.tree.norm(grads),
      "tokens": jnp.int32(tokens.shape[0] * num_learnt),
    }
    state = training.apply_gradients(
      state, grads, optimizer, ema_decay=config.ema_decay
    )
    return state, metrics

  @jax.jit
  def bound(params, key, tokens):
    keys = training.example_keys(key, tokens.shape[0])
    law = ctmc.count_masks(EVAL_MASKS)
    nll, _ = loss(params, keys, tokens, draw_masks=law)
    return nll

  sampler = functools.partial(
    ctmc.rollout,
    logits_fn=network.apply,
    length=corpus.length,
    mask_id=corpus.mask_id,
  )

  @functools.partial(jax.jit, static_argnames="num_samples")
  def draw(params, key, num_samples):
    prompt = None
    if corpus.num_prompt:
      prompt = jnp.asarray(corpus.held_out(num_samples))
      prompt = prompt[:, : corpus.num_prompt]
    keys = training.example_keys(key, num_samples)
    return sampler(params, keys, num_samples=num_samples, prompt=prompt).samples

  def evaluate(params, key, *, final):
    """`nll`, an upper bound in nats a token, and what tasks can check."""
    key_loss, key_sample = jax.random.split(key)
    tokens = jnp.asarray(corpus.held_out(config.num_eval))
    values = training.fetch(bound(params, key_loss, tokens)) / num_learnt
    exact = None
    if corpus.entropy is not None:
      exact = corpus.entropy / num_learnt
    metrics = {"nll": metrics_lib.mean(values, exact)}
    if corpus.task is not None:
      samples = training.fetch(draw(params, key_sample, config.num_eval))
      hits = corpus.task.exact(samples)
      metrics["exact_match"] = metrics_lib.mean(hits)
    if final:
      metrics["nfe"] = num_learnt
    return metrics

  def sample(params, key, num_samples):
    return training.fetch(draw(params, key, num_samples))

  def figures(params, key, directory, history):
    directory = pathlib.Path(directory)
    rows = sample(params, key, config.num_samples)
    lines = [json.dumps({"text": corpus.decode(row)}) for row in rows]
    (directory / "samples.jsonl").write_text("\n".join(lines) + "\n")
    exact = {}
    if corpus.entropy is not None:
      exact["eval/nll"] = corpus.entropy / num_learnt
    plots.curves(
      directory / "training.png",
      history,
      ("loss", "eval/nll", "eval/exact_match"),
      exact,
    )

  return training.Experiment(
    init=init,
    step=step,
    evaluate=evaluate,
    apply=network.apply,
    sample=sample,
    batches=lambda step: corpus.batch(config.seed, step, config.batch_size),
    figures=figures,
    axes=network.axes,
  )


def stand_in(config: ml_collections.ConfigDict) -> training.Experiment:
  """Shapes alone, where files of the user's would be read."""
  fields_lib.check(config)
  return build(config, corpora.stand_in(**config.data))


def make_network(config, corpus: corpora.Corpus) -> nets.Network:
  """The network that `config.net` describes."""
  net = config.net
  compute_dtype = jnp.dtype(net.compute_dtype)
  transformers = ("transformer", "llada")
  if net.kind not in transformers and (net.grid or net.remat):
    raise ValueError(
      "config.net.grid and remat are a transformer's, got grid="
      f"{tuple(net.grid)}, remat={net.remat} with net.kind={net.kind!r}."
    )
  if net.remat_policy not in POLICIES:
    raise ValueError(
      f"config.net.remat_policy must be one of {sorted(POLICIES)}, got "
      f"{net.remat_policy!r}."
    )
  if net.remat_policy and not net.remat:
    raise ValueError(
      f"config.net.remat_policy={net.remat_policy!r} needs net.remat=True."
    )
  policy = POLICIES[net.remat_policy]
  if net.kind == "llada":
    if net.grid or net.mlp != "swiglu":
      raise ValueError(
        "config.net.kind='llada' has no grid and mlp='swiglu', got grid="
        f"{tuple(net.grid)} and mlp={net.mlp!r}."
      )
    sizes = llada_config(config, corpus)
    llada.check_length(sizes, corpus.length)
    return llada.network(
      sizes,
      remat=net.remat,
      remat_policy=policy,
      compute_dtype=compute_dtype,
    )
  if net.kind == "mlp":
    return nets.mlp(
      corpus.length,
      corpus.num_tokens,
      hidden=(net.width,) * net.num_layers,
      compute_dtype=compute_dtype,
    )
  if net.kind == "dilated":
    return nets.dilated(
      corpus.length,
      corpus.num_tokens,
      width=net.width,
      num_stacks=net.num_layers,
      compute_dtype=compute_dtype,
    )
  return nets.transformer(
    corpus.length,
    corpus.num_tokens,
    width=net.width,
    num_layers=net.num_layers,
    num_heads=net.num_heads,
    num_kv_heads=net.num_kv_heads or None,
    mlp=net.mlp,
    mlp_width=net.mlp_width or None,
    grid=tuple(net.grid) or None,
    remat=net.remat,
    remat_policy=policy,
    compute_dtype=compute_dtype,
  )


def llada_config(config, corpus: corpora.Corpus) -> llada.Config:
  """Sizes of a network of kind `"llada"`, as its checkpoints have them."""
  net = config.net
  if corpus.eos_id is None:
    raise ValueError(
      "config.net.kind='llada' needs data that ends its texts, such as "
      "kind='questions'."
    )
  return llada.Config(
    num_tokens=corpus.num_tokens,
    width=net.width,
    num_layers=net.num_layers,
    num_heads=net.num_heads,
    num_kv_heads=net.num_kv_heads or net.num_heads,
    mlp_width=net.mlp_width or 4 * net.width,
    rope_base=net.rope_base,
    norm_eps=net.norm_eps,
    mask_id=corpus.mask_id,
    eos_id=corpus.eos_id,
    max_length=net.max_length,
    shift_targets=net.shift_targets,
  )


def network_options(config, network: nets.Network, corpus: corpora.Corpus):
  """What ELBO estimates are told of the network."""
  options = dict(logits_fn=network.apply, mask_id=corpus.mask_id)
  if config.net.head_chunk:
    if network.hidden is None or network.head is None:
      raise ValueError(
        "config.net.head_chunk must be 0 where the network's head is not apart,"
        f" got {config.net.head_chunk} with net.kind={config.net.kind!r}."
      )
    options["token_log_probs"] = elbo.streamed(
      network.hidden,
      network.head,
      chunk_size=config.net.head_chunk,
      mask_id=corpus.mask_id,
    )
  return options


def _check(config) -> None:
  if config.net.kind not in NETWORKS:
    raise ValueError(
      f"config.net.kind must be one of {NETWORKS}, got {config.net.kind!r}."
    )
  if config.mask_law not in MASK_LAWS:
    raise ValueError(
      f"config.mask_law must be one of {sorted(MASK_LAWS)}, got "
      f"{config.mask_law!r}."
    )
