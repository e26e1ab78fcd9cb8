"""Records of runs that never were: what a cell writes, as far as the pages read it."""

ENVIRONMENT = {"device": "a machine", "torch": "2.0", "commit": "abc1234"}


def records(values, balanced=None, selections=(), tail=None, **dynamics):
    """Return a record a seed, of accuracies in percent."""
    return {
        seed: {
            "cell": {"precision": "float32"},
            "environment": ENVIRONMENT,
            "result": {
                "accuracies": [0.1, value / 100],
                "balanced_accuracy": (value if balanced is None else balanced) / 100,
                "steps": 10,
                "augmented": 5,
                **({} if tail is None else {"tail_accuracy": tail[seed] / 100}),
            },
            "dynamics": {"selections": list(selections), **dynamics},
        }
        for seed, value in enumerate(values)
    }
