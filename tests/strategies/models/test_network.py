import pytest
import torch
from torch import Tensor, nn

from strategies.models.network import Network


class _Features(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images


@pytest.fixture
def network() -> Network:
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        return Network(_Features(), nn.Linear(64, 1000))  # type: ignore[arg-type]


def test_the_head_computes_in_float32_within_autocast(network: Network) -> None:
    features = torch.randn(100, 64)
    with torch.inference_mode():
        expected = network(features)
        with torch.autocast("cpu", torch.bfloat16):
            found = network(features)
            assert network.head(features).dtype == torch.bfloat16  # the test can fail

    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_the_two_best_of_many_classes_are_not_tied_within_autocast(network: Network) -> None:
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        best = network(torch.randn(300, 64)).topk(2, dim=1).values

    assert (best[:, 0] > best[:, 1]).all()


def test_gradients_of_the_head_flow_within_autocast(network: Network) -> None:
    features = torch.randn(4, 64, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        network.scores(features.to(torch.bfloat16)).sum().backward()

    assert network.head.weight.grad is not None
    assert features.grad is not None
