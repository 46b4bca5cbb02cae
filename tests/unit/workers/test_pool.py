from omr_ray.workers.pool import shares, step_seed


def test_shares_are_contiguous_nearly_equal_and_one_a_worker():
    assert shares("abcdefg", workers=3, largest=9) == [["a", "b", "c"], ["d", "e"], ["f", "g"]]


def test_a_share_is_at_most_one_batch():
    assert [len(share) for share in shares(range(8), workers=1, largest=3)] == [3, 3, 2]
    assert shares("ab", workers=1, largest=0) == [["a"], ["b"]]  # the siblings of one dialogue already exceed a batch


def test_shares_do_not_depend_on_workers_where_the_batch_decides():
    assert shares(range(8), workers=1, largest=2) == shares(range(8), workers=4, largest=2)


def test_fewer_items_than_workers():
    assert shares("ab", workers=4, largest=8) == [["a"], ["b"]]
    assert shares("", workers=4, largest=8) == []


def test_steps_and_runs_have_seeds_of_their_own():
    seeds = [step_seed(seed, step) for seed in range(20) for step in range(20)]
    assert len(set(seeds)) == 400
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert step_seed(3, 5) == step_seed(3, 5)
