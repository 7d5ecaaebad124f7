"""Arms whose rows come from other arms' data sets: drawn from several, joined, or picked by how they train.

No teacher is asked anything for them.
"""

from collections import Counter
from collections.abc import Mapping

from pipeline.cluster import Cluster
from pipeline.experiment import ArmConfig, CartographyConfig, ExperimentConfig
from pipeline.identity import digest
from pipeline.quality.cartography import select_rows
from pipeline.quality.draws import mix_rows, remember_arm
from pipeline.records import Example, RowDynamics, from_table, to_table
from pipeline.sources.data import JoinConfig, MixConfig
from pipeline.stages.dataset import EXAMPLES, ROWS, Answers, run_dataset
from pipeline.stages.dynamics import ROW_DYNAMICS, TRACED, trace_dynamics
from pipeline.stages.inputs import Inputs
from pipeline.steps import Step, Steps

DRAWN = "drawn_"
"""Start of the names under which a mix or a join counts what it took from each arm, before its own filters."""


def build_derived(
    key: str,
    arm: ArmConfig,
    datasets: Mapping[str, Step],
    experiment: ExperimentConfig,
    inputs: Inputs,
    steps: Steps,
    cluster: Cluster,
) -> Step:
    """Return the data-set step of an arm that names others; `datasets` has theirs.

    Raises:
        SourceError: No rows were left.
        TrainingError: The student whose training is to pick rows could not be trained.
    """
    match arm.data:
        case MixConfig():
            return build_mix(key, arm, datasets, experiment, inputs, steps)
        case JoinConfig() as join:
            return _join(key, arm, join, datasets, experiment, inputs, steps)
        case CartographyConfig() as cartography:
            return _pick(key, arm, cartography, datasets, experiment, inputs, steps, cluster)
        case data:
            raise AssertionError(f"{key}: data of kind {data.kind} name no other arm")


def build_mix(
    key: str, arm: ArmConfig, datasets: Mapping[str, Step], experiment: ExperimentConfig, inputs: Inputs, steps: Steps
) -> Step:
    """Return the data-set step of an arm whose rows are drawn from other arms' data sets.

    Raises:
        SourceError: No rows were left.
    """
    mix, max_rows = arm.data, arm.filters.max_rows
    assert isinstance(mix, MixConfig)

    def draw() -> Answers:
        tables = {name: datasets[name].folder.read_table(EXAMPLES) for name in mix.shares}
        rows = {name: list(from_table(Example, table)) for name, table in tables.items()}
        drawn = mix_rows(rows, mix.shares, max_rows, mix.seed)
        return Answers(drawn, counts=Counter(f"{DRAWN}{example.extras['arm']}" for example in drawn))

    made_of = {
        # As a list: the order of the arms decides which of two rows that repeat each other stays.
        "mix": digest([[list(share) for share in mix.shares.items()], mix.seed]),
        **{f"{ROWS} {name}": datasets[name].manifest["digests"][ROWS] for name in mix.shares},
    }
    return run_dataset(key, arm, experiment, inputs, steps, made_of, draw)


def _join(
    key: str,
    arm: ArmConfig,
    join: JoinConfig,
    datasets: Mapping[str, Step],
    experiment: ExperimentConfig,
    inputs: Inputs,
    steps: Steps,
) -> Step:
    def read() -> Answers:
        rows = [
            remember_arm(example, name)
            for name in join.arms
            for example in from_table(Example, datasets[name].folder.read_table(EXAMPLES))
        ]
        return Answers(rows, counts=Counter(f"{DRAWN}{example.extras['arm']}" for example in rows))

    # As a list: the order decides which of two rows that repeat each other stays.
    made_of = {"joined": digest([[name, datasets[name].manifest["digests"][ROWS]] for name in join.arms])}
    return run_dataset(key, arm, experiment, inputs, steps, made_of, read)


def _pick(
    key: str,
    arm: ArmConfig,
    cartography: CartographyConfig,
    datasets: Mapping[str, Step],
    experiment: ExperimentConfig,
    inputs: Inputs,
    steps: Steps,
    cluster: Cluster,
) -> Step:
    source, task = datasets[cartography.arm], inputs.task
    traced = trace_dynamics(
        key,
        source,
        cartography.student,
        inputs.cartographers[key],
        task.labels,
        experiment.scale.training,
        steps,
        cluster,
    )

    def read() -> Answers:
        examples = list(from_table(Example, source.folder.read_table(EXAMPLES)))
        dynamics = list(from_table(RowDynamics, traced.folder.read_table(ROW_DYNAMICS)))
        kept, rejects = select_rows(examples, dynamics, cartography.selection)
        return Answers(
            kept, rejects, counts={"picked_from": len(examples)}, tables={ROW_DYNAMICS: to_table(RowDynamics, dynamics)}
        )

    made_of = {
        ROWS: source.manifest["digests"][ROWS],
        "dynamics": traced.manifest["digests"][TRACED],
        "selection": digest(cartography.selection),
    }
    return run_dataset(key, arm, experiment, inputs, steps, made_of, read)
