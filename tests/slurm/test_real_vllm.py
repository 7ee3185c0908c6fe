"""A real vLLM on the CPU, as two replicas on the real cluster: `make test-vllm`.

The model has half a million random parameters and is made here: what it says means nothing.
"""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from domyn_swarm.model import JobStatus
from domyn_swarm.services.jobs import JobService
from patience import scaled
from slurm.cluster import SlurmCluster
from slurm.swarms import Up, all_answered, jobs_of, ready, request, task, under_way, until

MOST_S = scaled(300)  # a real model on a CPU
pytestmark = [pytest.mark.vllm, pytest.mark.timeout(3 * MOST_S)]

TEMPLATE = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}<|assistant|>"


def make_model(folder: Path) -> Path:
    """A Llama with random weights and a tokenizer that knows the bytes."""
    from tokenizers import ByteLevelBPETokenizer
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(["some words to begin with"] * 10, vocab_size=512)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe._tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )
    tokenizer.chat_template = TEMPLATE
    size = LlamaConfig(
        vocab_size=len(tokenizer) + 8,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=2048,
    )
    LlamaForCausalLM(size).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_vllm_serves_a_job_and_drains(up: Up, slurm: SlurmCluster, tmp_path: Path) -> None:
    model = make_model(tmp_path / "model")
    began = time.monotonic()
    up(
        engine="vllm",
        model=str(model),
        replicas=2,
        min_ready=2,
        gpus_per_replica=0,
        memory_gb=6,
        cpus_per_task=1,
        engine_options={},
        args=["--max-model-len", "2048", "--enforce-eager", "--max-num-seqs", "16"],
        env={"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"},
        watchdog={"probe_interval": 2, "kill_grace_seconds": 20},
    )
    print(f"two replicas after {time.monotonic() - began:.0f} s")
    jobs = JobService()
    asked = request(tmp_path, 3000, job_kwargs={"max_tokens": 16, "temperature": 0.5})
    handle = jobs.submit(asked)
    under_way(handle, 100)
    slurm.run("scancel", "--batch", "--signal=USR1", task(slurm, 0))  # near its time limit
    until(lambda: jobs_of(slurm)[task(slurm, 0)] == "PENDING")
    ended = jobs.wait(handle, timeout_s=MOST_S)
    assert ended.status is JobStatus.SUCCEEDED
    assert ended.account is not None
    print(ended.account)
    assert ended.account.retries == 0  # nobody was cut off
    assert all_answered(tmp_path, 3000)
    until(lambda: ready() == 2)
