from omr_ray.progress import _last_line


def test_the_last_whole_line_is_read_while_another_is_written(tmp_path):
    file = tmp_path / "metrics.jsonl"
    assert _last_line(file) is None
    file.write_text('{"step": 1')
    assert _last_line(file) is None
    file.write_text("".join(f'{{"step": {step}, "progress": 0.5}}\n' for step in range(1, 300)) + '{"step": 300, "pro')
    assert _last_line(file) == {"step": 299, "progress": 0.5}
