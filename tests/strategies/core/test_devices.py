"""Devices: choice, precision, copies, and the settings of CUDA."""

from dataclasses import replace

import pytest
import torch
from torch.backends import cuda, cudnn

from strategies.core.context import RunContext
from strategies.core.devices import (
    choose_precision,
    copy_to,
    cuda_settings,
    device_name,
    make_device,
    predict_precision,
)
from strategies.core.errors import TransferError


def test_the_default_device_can_compute() -> None:
    assert torch.zeros(1, device=make_device("auto")).sum().item() == 0


def test_the_cpu_is_always_available() -> None:
    assert make_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize("name", ["banana", "meta", "", "cuda:99", "cpu cuda"])
def test_an_unusable_device_is_refused_with_the_valid_names(name: str) -> None:
    with pytest.raises(TransferError, match="Use auto, cpu, cuda"):
        make_device(name)


@pytest.mark.parametrize(
    ("is_native", "expected"), [(True, torch.bfloat16), (False, torch.float16)]
)
def test_a_gpu_that_emulates_bfloat16_computes_in_float16(
    monkeypatch: pytest.MonkeyPatch, is_native: bool, expected: torch.dtype
) -> None:
    def is_supported(including_emulation: bool = True) -> bool:
        return is_native or including_emulation

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", is_supported)
    assert choose_precision(torch.device("cuda")) == expected
    assert predict_precision(torch.device("cuda")) == expected


def test_a_cpu_classifies_in_float32_even_if_it_has_bfloat16(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    assert choose_precision(torch.device("cpu")) == torch.bfloat16
    assert predict_precision(torch.device("cpu")) == torch.float32


def test_a_copy_to_the_cpu_is_the_tensor_itself() -> None:
    values = torch.arange(3)
    assert copy_to(values, torch.device("cpu")) is values


def test_timings_belong_to_a_model_of_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    models = {torch.device("cuda", 0): "H200", torch.device("cuda", 1): "T4"}
    monkeypatch.setattr(torch.cuda, "get_device_name", models.__getitem__)
    assert [device_name(device) for device in (*models, torch.device("cpu"))] == [
        "H200",
        "T4",
        "cpu",
    ]


def _settings() -> tuple[bool, ...]:
    tf32 = (cuda.matmul.allow_tf32, cudnn.allow_tf32)
    return (
        *tf32,
        cudnn.benchmark,
        cudnn.deterministic,
        torch.are_deterministic_algorithms_enabled(),
        cuda.flash_sdp_enabled(),
        cuda.mem_efficient_sdp_enabled(),
        cuda.cudnn_sdp_enabled(),
    )


@pytest.mark.parametrize(
    ("is_deterministic", "expected"),
    [
        (False, (False, False, True, False, False, True, True, True)),
        (True, (False, False, False, True, True, False, False, False)),
    ],
)
def test_the_settings_of_cuda_are_explicit_and_those_of_before_come_back(
    ctx: RunContext, is_deterministic: bool, expected: tuple[bool, ...]
) -> None:
    before = _settings()
    assert before != expected
    with cuda_settings(torch.device("cuda"), is_deterministic=is_deterministic):
        assert _settings() == expected
    assert _settings() == before

    on_cuda = replace(ctx, device=torch.device("cuda"), is_deterministic=is_deterministic)
    with on_cuda.autocast():
        assert _settings() == expected
    with pytest.raises(KeyError), on_cuda.device_settings():
        raise KeyError
    assert _settings() == before


def test_the_settings_of_cuda_stay_as_they_are_on_a_cpu() -> None:
    before = _settings()
    with cuda_settings(torch.device("cpu"), is_deterministic=True):
        assert _settings() == before
