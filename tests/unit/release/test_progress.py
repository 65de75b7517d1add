from trainyard.release.training import step_words

STEP = {"step": 50, "total_steps": 200, "loss": 0.5, "tokens_per_s": 12345.6, "seconds": 120.0}


def test_progress_says_how_far_how_fast_how_long_and_what_it_cost():
    share, words = step_words(STEP | {"gpu_gib": 17.25, "rss_gib": 3.0}, price_per_s=0.001)
    assert share == 0.25
    assert words == (
        "step 50 of 200, loss 0.500, 12,346 tokens/s, 17.2 GiB, 6.0 min left, cost 0.12"
    )


def test_progress_says_only_what_is_known():
    assert step_words({"step": 1, "loss": 2.0}) == (0.0, "step 1, loss 2.000")
