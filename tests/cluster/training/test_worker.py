"""What a worker makes of an error."""

import torch

from cluster.training.worker import hopeless
from gpt2.training.guard import GaveUp


def test_a_process_group_that_is_gone_is_no_reason_to_give_up(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'meeting'}", rank=0, world_size=1)
    try:
        assert hopeless(ValueError("batch_size=4096 is more than there is"))
    finally:
        torch.distributed.destroy_process_group()
    try:
        torch.distributed.barrier()
    except ValueError as error:  # what the others meet
        assert not hopeless(error)
    else:
        raise AssertionError("PyTorch tells it in another way now")
    assert hopeless(GaveUp("too many bad steps"))
