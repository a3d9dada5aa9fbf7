//! Whatever a helper does, a request is answered rightly, and the answer says what happened.

use std::time::Instant;

use jobs::engine::EnginePolicy;
use jobs::id::{Bytes as Size, ModelRef};
use jobs::report::{FailureCode, InferReport, RefusedEngine};
use jobs::spec::{InferInput, InferTask, TensorHeader};
use models::artifact::ModelConfig;
use models::train::{Sgd, Trainer};

use self::unchecked::waves;
use super::infer::inferred;
use super::*;

mod many;
mod unchecked;

const SIDE: usize = 128;
/// Within this an answer comes, also where an engine hangs: less than a helper may take to answer.
const DEADLINE: Duration = Duration::from_secs(10);

/// A model that takes longer than a message to a helper.
fn slow_onnx() -> Vec<u8> {
    onnx(SIDE)
}

/// The same for pictures of this side.
fn onnx(side: usize) -> Vec<u8> {
    let graph = models::zoo::build("resnet8", [3, side, side], 10, 1).unwrap();
    let sgd = Sgd { learning_rate: 0.0, momentum: 0.0, weight_decay: 0.0 };
    Trainer::new(&graph, sgd).unwrap().to_inference_onnx()
}

async fn slow_model(world: &World) -> ModelRef {
    world.register(slow_onnx(), &ModelConfig::default()).await
}

fn ask(model: &ModelRef, engine: &str) -> InferTask {
    let side = SIDE as u64;
    let header = TensorHeader {
        name: String::new(),
        datatype: "FP32".to_owned(),
        shape: vec![1, 3, side, side],
        size: Size(4 * 3 * side * side),
    };
    let input = InferInput::Tensors { tensors: vec![header] };
    let engine: EnginePolicy = engine.parse().unwrap();
    InferTask { model: model.clone(), input, top: 1, engine, answer_to: None }
}

/// An input that no other number gives.
fn input(number: u16) -> Vec<u8> {
    let values = (0..=250_u8).cycle().take(3 * SIDE * SIDE);
    let value = |value: u8| f32::from(value) / 251.0 + f32::from(number);
    values.flat_map(|each| value(each).to_le_bytes()).collect()
}

/// Whether two engines gave the same numbers, but for the order of additions.
fn near(found: &[u8], expected: &[u8]) -> bool {
    let floats = |bytes: &[u8]| -> Vec<f32> {
        bytes.as_chunks().0.iter().map(|chunk| f32::from_le_bytes(*chunk)).collect()
    };
    let (found, expected) = (floats(found), floats(expected));
    let most = expected.iter().fold(1.0_f32, |most, value| most.max(value.abs()));
    found.len() == expected.len()
        && found.iter().zip(&expected).all(|(a, b)| (a - b).abs() <= 1e-3 * most)
}

struct Helped {
    world: World,
    agent: Agent,
    model: ModelRef,
}

impl Helped {
    async fn new(fake: Fake) -> Self {
        let world = World::new().await;
        let accel = testing::write(world.dir.path(), fake);
        let agent = world.join(Config { accel: Some(accel), ..world.config() }).await;
        let model = slow_model(&world).await;
        Self { world, agent, model }
    }

    /// Asks, and holds the answer to the deadline.
    async fn ask_in_time(&self, engine: &str, number: u16) -> (InferReport, Vec<u8>) {
        let begun = Instant::now();
        let task = ask(&self.model, engine);
        let (report, outputs) = self.world.infer_within(DEADLINE, &task, &input(number)).await;
        let taken = begun.elapsed();
        assert!(taken < DEADLINE, "{taken:?}: {report:?}");
        (inferred(report), outputs.to_vec())
    }

    async fn ask(&self, engine: &str, number: u16) -> (InferReport, Vec<u8>) {
        let (report, outputs) = self.world.infer(&ask(&self.model, engine), &input(number)).await;
        (inferred(report), outputs.to_vec())
    }

    /// Asks until an answer is as it should be; the number of the last question counts up.
    async fn ask_until(&self, right: impl Fn(&InferReport) -> bool) -> (InferReport, Vec<u8>) {
        let begun = Instant::now();
        loop {
            let (report, outputs) = self.ask_in_time("", 1).await;
            if right(&report) {
                return (report, outputs);
            }
            assert!(begun.elapsed() < PATIENCE, "{report:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_faster_engine_answers_once_it_was_compared() {
    let helped = Helped::new(Fake::Good).await;
    let (first, expected) = helped.ask("tract", 1).await;
    assert_eq!(first.engine, "tract");
    let (report, outputs) = helped.ask_until(|report| report.engine == "cuda").await;
    assert!(report.refused_engines.is_empty(), "{report:?}");
    assert_eq!(report.engine_us, 3);
    assert_eq!(outputs, expected, "the helper answers as tract does");
    assert_ne!(helped.ask("!cuda", 1).await.0.engine, "cuda");
    let failure = helped.world.infer(&ask(&helped.model, "webgpu"), &input(1)).await.0;
    let failure = failure_of(failure);
    assert_eq!(failure.code, FailureCode::EngineUnavailable);
    assert!(failure.message.contains("webgpu: this is a fake"), "{failure:?}");

    let mut hellos = helped.world.listen("fleet.pi.hello").await;
    helped.agent.stop().await;
    let accel = testing::write(helped.world.dir.path(), Fake::Good);
    let agent = start(Config { accel: Some(accel), ..helped.world.config() });
    let hello = loop {
        let hello: jobs::device::Hello = next_as(&mut hellos).await;
        if !hello.engine_facts.is_empty() {
            break hello;
        }
    };
    assert_eq!(hello.engines[0], "cuda");
    assert_eq!(hello.engine_facts[0].device.as_deref(), Some("a fake"));
    let of = |engine| hello.engine_facts.iter().find(|facts| facts.engine == engine).unwrap();
    for engine in crate::engines::CPU {
        assert_eq!(of(engine).unusable, None, "{engine}");
    }
    agent.stop().await;
}

/// A job names an engine that this device cannot have; another one that it names answers.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_asks_for_an_engine_is_told_why_another_one_answered() {
    let world = World::new().await;
    // A 64-bit program for a loader that is not here.
    let accel = world.dir.path().join("helper-for-glibc");
    let mut program = std::fs::read("/proc/self/exe").unwrap();
    let loader = b"/lib64/ld-linux";
    let Some(at) = program.windows(loader.len()).position(|part| part == loader) else {
        #[expect(clippy::print_stderr, reason = "a skipped test says so")]
        {
            eprintln!("NOT TESTED: this is no program for glibc on x86_64");
        }
        return;
    };
    program.truncate(1 << 20);
    program[at + 1] = b'X';
    std::fs::write(&accel, program).unwrap();
    for (accel, words) in [
        (accel, "needs glibc, whose loader /Xib64/ld-linux"),
        (world.dir.path().join("absent"), "absent: No such file"),
        (testing::write(world.dir.path(), Fake::Good), "this is a fake"),
    ] {
        let agent = world.join(Config { accel: Some(accel), ..world.config() }).await;
        let model = slow_model(&world).await;
        let (report, _) = world.infer(&ask(&model, "ort-cpu,native"), &input(1)).await;
        assert_eq!(inferred(report).engine, "native");
        // Before engines are known that is the reason.
        let (report, _) = world.infer(&ask(&model, "ort-cpu"), &input(1)).await;
        assert_eq!(failure_of(report).code, FailureCode::EngineUnavailable);
        let (report, _) = world.infer(&ask(&model, "ort-cpu,native"), &input(1)).await;
        let RefusedEngine { engine, reason } = &inferred(report).refused_engines[0];
        assert!(engine == "ort-cpu" && reason.contains(words), "{engine}: {reason}");
        let (report, _) = world.infer(&ask(&model, "native"), &input(1)).await;
        assert!(inferred(report).refused_engines.is_empty(), "nobody asked for it");
        agent.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_engine_that_may_not_be_used_is_not_touched() {
    let world = World::new().await;
    let accel = testing::write(world.dir.path(), Fake::Good);
    let forbidden_engines = vec!["cuda".to_owned()];
    let config = Config { accel: Some(accel), forbidden_engines, ..world.config() };
    let agent = world.join(config).await;
    let model = slow_model(&world).await;
    let failure = failure_of(world.infer(&ask(&model, "cuda"), &input(1)).await.0);
    assert!(failure.message.contains("configuration forbids"), "{failure:?}");
    agent.stop().await;
}

/// The helper fails at the first question that it has not seen.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_a_helper_fails_the_next_engine_answers_and_says_so() {
    for (fake, words) in [
        (Fake::Crashes, "exit code 101"),
        (Fake::Dies, "signal 11"),
        (Fake::Hangs, "no answer within"),
        (Fake::Babbles, "a frame of"),
        (Fake::Overstates, "1073741824 bytes in shared memory of 67108864"),
        (Fake::LacksMemory, "out of memory"),
    ] {
        let helped = Helped::new(fake).await;
        let (_, expected) = helped.ask("tract", 1).await;
        let refused = |report: &InferReport| !report.refused_engines.is_empty();
        let (report, outputs) = helped.ask_until(refused).await;
        assert_ne!(report.engine, "cuda", "{fake:?}");
        assert!(near(&outputs, &expected), "{fake:?}");
        let refused = &report.refused_engines[0];
        assert_eq!(refused.engine, "cuda");
        assert!(refused.reason.contains(words), "{fake:?}: {refused:?}");
        assert_eq!(helped.ask("tract", 1).await.1, expected, "the agent lives");
        if fake == Fake::LacksMemory {
            let alone = helped.world.infer(&ask(&helped.model, "cuda"), &input(2)).await.0;
            let failure = failure_of(alone);
            assert_eq!(failure.code, FailureCode::EngineUnavailable);
            assert!(failure.message.contains("cuda: out of memory"), "{failure:?}");
        }
        helped.agent.stop().await;
    }
}

/// As after an error that CUDA does not recover from.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_engine_that_refuses_from_some_input_on_is_started_anew() {
    let helped = Helped::new(Fake::Sticks).await;
    let (_, expected) = helped.ask("tract", 7).await;
    // Asked for by its name it is compared again, found to be of no use, and asked once more.
    let (report, outputs) = helped.ask("cuda", 7).await;
    assert_eq!((report.engine.as_str(), &outputs), ("cuda", &expected));
    helped.agent.stop().await;

    let helped = Helped::new(Fake::Sticks).await;
    let refused = |report: &InferReport| !report.refused_engines.is_empty();
    let (report, outputs) = helped.ask_until(refused).await;
    assert!(report.engine != "cuda" && near(&outputs, &helped.ask("tract", 1).await.1));
    assert_eq!(report.refused_engines[0].reason, "CUDA error 700");
    let (report, _) = helped.ask_until(|report| report.engine == "cuda").await;
    assert!(!refused(&report), "{report:?}");
    assert_eq!(helped.ask("", 7).await.0.engine, "cuda", "its new process");
    helped.agent.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_engine_that_keeps_failing_rests_and_says_so() {
    for fake in [Fake::LacksMemory, Fake::Crashes] {
        let helped = Helped::new(fake).await;
        let rests = |report: &InferReport| {
            report
                .refused_engines
                .iter()
                .any(|refused| refused.reason.contains("is tried again in"))
        };
        helped.ask_until(rests).await;
        // It comes back.
        helped.ask_until(|report| !rests(report)).await;
        helped.ask_until(rests).await;
        helped.agent.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_engine_that_lacked_memory_for_a_model_is_tried_again_later() {
    let helped = Helped::new(Fake::LoadsLater).await;
    let lacked = |report: &InferReport| {
        report.refused_engines.iter().any(|refused| refused.reason.starts_with("out of memory"))
    };
    helped.ask_until(lacked).await;
    helped.ask_until(|report| report.engine == "cuda").await;
    helped.agent.stop().await;
}

/// A driver hangs while the helper starts, or while it loads a model.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_engine_that_hangs_before_it_has_the_model_holds_up_no_other() {
    for fake in [Fake::HangsAtHello, Fake::HangsLoading] {
        let helped = Helped::new(fake).await;
        let (report, outputs) = helped.ask_in_time("cuda,ort-cpu", 1).await;
        assert_eq!(report.engine, "ort-cpu", "{fake:?}");
        let RefusedEngine { engine, reason } = &report.refused_engines[0];
        assert!(engine == "cuda" && reason.starts_with("it is being tried"), "{engine}: {reason}");
        assert!(near(&outputs, &helped.ask_in_time("native", 1).await.1));
        // Whoever insists on it hears of it in time.
        let (begun, task) = (Instant::now(), ask(&helped.model, "cuda"));
        let failure = failure_of(helped.world.infer_within(DEADLINE, &task, &input(1)).await.0);
        assert_eq!(failure.code, FailureCode::EngineUnavailable);
        assert!(failure.message.contains("cuda: it is being tried"), "{failure:?}");
        assert!(begun.elapsed() < DEADLINE, "{:?}", begun.elapsed());
        helped.agent.stop().await;
    }
}

/// One thread is enough.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_agents_own_engine_answers_while_the_cpus_helper_hangs_in_vain() {
    let world = World::new().await;
    for fake in [Fake::Hangs, Fake::HangsLoading] {
        let tract = Some(testing::write(world.dir.path(), fake));
        let agent = world.join(Config { tract, ..world.config() }).await;
        let model = slow_model(&world).await;
        let (other, words) = if fake == Fake::Hangs {
            (ask(&model, "tract"), "tract: no answer within")
        } else {
            let waves = world.register(waves(), &ModelConfig::default()).await;
            (ask(&waves, ""), "it is being loaded")
        };
        let begun = Instant::now();
        let hanging = async {
            let report = world.infer_as("other", DEADLINE, &other, &input(2)).await.0;
            let failure = failure_of(report);
            assert_eq!(failure.code, FailureCode::EngineUnavailable, "{failure:?}");
            assert!(failure.message.contains(words), "{failure:?}");
            assert!(begun.elapsed() < DEADLINE, "{:?}", begun.elapsed());
        };
        let answering = async {
            for number in 3..6 {
                tokio::time::sleep(DEADLINE / 8).await;
                let (begun, task) = (Instant::now(), ask(&model, "native"));
                let report = world.infer_within(DEADLINE, &task, &input(number)).await.0;
                assert_eq!(inferred(report).engine, "native");
                assert!(begun.elapsed() < DEADLINE / 2, "{:?}", begun.elapsed());
            }
        };
        tokio::join!(hanging, answering);
        agent.stop().await;
    }
}

/// Behind it there is no other engine.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_of_the_cpus_helper_costs_the_request_that_caused_it() {
    let world = World::new().await;
    for (fake, recovers) in [(Fake::CrashesOnce, true), (Fake::Crashes, false)] {
        let tract = Some(testing::write(world.dir.path(), fake));
        let agent = world.join(Config { tract, ..world.config() }).await;
        let model = slow_model(&world).await;
        let tasked = ask(&model, "tract");
        for number in [1, 2] {
            let (report, outputs) = world.infer(&tasked, &input(number)).await;
            if recovers {
                assert_eq!(inferred(report).engine, "tract");
                let (_, expected) = world.infer(&ask(&model, "native"), &input(number)).await;
                assert!(near(&outputs, &expected));
            } else {
                let failure = failure_of(report);
                assert_eq!(failure.code, FailureCode::EngineUnavailable);
                assert!(failure.message.contains("tract: it ended: exit code 101"), "{failure:?}");
            }
        }
        assert_eq!(
            inferred(world.infer(&ask(&model, "!tract"), &input(3)).await.0).engine,
            "native"
        );
        agent.stop().await;
    }
}

/// It is asked before the agent's own engine, which is slower.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_the_cpus_helper_hangs_the_agents_own_engine_answers_in_time() {
    let world = World::new().await;
    let tract = Some(testing::write(world.dir.path(), Fake::Hangs));
    let agent = world.join(Config { tract, ..world.config() }).await;
    let model = slow_model(&world).await;
    let helped = Helped { world, agent, model };
    let (_, expected) = helped.ask_in_time("native", 1).await;
    let (report, outputs) = helped.ask_until(|report| !report.refused_engines.is_empty()).await;
    assert_eq!((report.engine.as_str(), outputs), ("native", expected));
    let RefusedEngine { engine, reason } = &report.refused_engines[0];
    assert!(engine == "tract" && reason.starts_with("no answer within"), "{engine}: {reason}");
    // Others do not wait for it.
    let begun = Instant::now();
    let (report, _) = helped.ask_in_time("", 2).await;
    assert!(report.engine == "native" && begun.elapsed() < Duration::from_secs(2), "{report:?}");
    let reason = &report.refused_engines[0].reason;
    assert_eq!(reason, "it has not answered an earlier request so far");
    helped.agent.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_the_cpus_helper_the_agents_own_engine_answers() {
    let world = World::new().await;
    let mut hellos = world.listen("fleet.pi.hello").await;
    let tract = Some(world.dir.path().join("absent"));
    let agent = start(Config { tract, ..world.config() });
    let hello: jobs::device::Hello = next_as(&mut hellos).await;
    assert_eq!(hello.engines, ["native"]);
    let model = slow_model(&world).await;
    assert_eq!(inferred(world.infer(&ask(&model, ""), &input(1)).await.0).engine, "native");
    let failure = failure_of(world.infer(&ask(&model, "tract"), &input(1)).await.0);
    assert_eq!(failure.code, FailureCode::EngineUnavailable);
    assert!(failure.message.contains("absent: No such file"), "{failure:?}");
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_helper_that_cannot_be_trusted_never_answers() {
    for (fake, words) in [
        (Fake::Wrong, "differs from the CPU's"),
        (Fake::Refuses, "operator Relu"),
        (Fake::EndsAtOnce, "exit code 101"),
        (Fake::EndsLoading, "exit code 3"),
    ] {
        let helped = Helped::new(fake).await;
        assert_ne!(helped.ask("", 1).await.0.engine, "cuda");
        let forced = helped.world.infer(&ask(&helped.model, "cuda"), &input(1)).await.0;
        let failure = failure_of(forced);
        assert_eq!(failure.code, FailureCode::EngineUnavailable, "{fake:?}");
        assert!(failure.message.contains(words), "{fake:?}: {failure:?}");
        let (report, _) = helped.ask("", 2).await;
        assert_ne!(report.engine, "cuda");
        let told = report.refused_engines.iter().any(|refused| refused.reason.contains(words));
        // What an engine never could is no news in each answer.
        assert_eq!(told, fake != Fake::Refuses, "{fake:?}: {report:?}");
        helped.agent.stop().await;
    }
}
