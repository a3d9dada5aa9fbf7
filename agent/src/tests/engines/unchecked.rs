//! Models that no engine of the CPU takes, or has in time.

use super::*;

/// A model that `native` does not take.
pub(super) fn waves() -> Vec<u8> {
    let mut model = models::onnx::parse(&slow_onnx()).unwrap();
    let graph = model.graph.as_mut().unwrap();
    let name = graph.output[0].name.clone();
    graph.output[0].name = "waves".to_owned();
    graph.node.push(models::onnx::NodeProto::new("waves", "Sin", &[&name], &["waves"]));
    model.to_bytes()
}

/// `native` does not take the model, and the other engine of the CPU is absent.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_no_engine_of_the_cpu_takes_onnx_runtime_answers_unchecked() {
    let world = World::new().await;
    let (absent, dir) = (world.dir.path().join("absent"), world.dir.path());
    for (fake, tract, answers) in [
        (Fake::Good, testing::write(dir, Fake::Plain), Some("tract")),
        (Fake::Good, absent.clone(), None),
        (Fake::Both, absent, Some("ort-cpu")),
    ] {
        let accel = Some(testing::write(dir, fake));
        let agent = world.join(Config { accel, tract: Some(tract), ..world.config() }).await;
        let model = world.register(waves(), &ModelConfig::default()).await;
        let (report, _) = world.infer(&ask(&model, ""), &input(1)).await;
        let Some(answers) = answers else {
            let failure = failure_of(report);
            assert_eq!(failure.code, FailureCode::EngineUnavailable);
            let words = ["absent: No such file", "; ort-cpu: this is a fake"];
            assert!(words.iter().all(|words| failure.message.contains(words)), "{failure:?}");
            agent.stop().await;
            continue;
        };
        let report = inferred(report);
        assert_eq!(report.engine, answers);
        let told = |report: &InferReport| {
            report.refused_engines.iter().any(|refused| refused.reason.contains("no second engine"))
        };
        assert_eq!(told(&report), answers == "ort-cpu", "{report:?}");
        // It is held to the one that answers, whoever that is.
        let (report, _) = world.infer(&ask(&model, "cuda"), &input(1)).await;
        let report = inferred(report);
        assert!(report.engine == "cuda" && !told(&report), "{report:?}");
        agent.stop().await;
    }
}

/// `native` does not take the model, and all others hang that have it. What one gave for the golden
/// input is known still.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_every_engine_hangs_one_is_started_anew_in_time() {
    let world = World::new().await;
    let tract = testing::write(world.dir.path(), Fake::Plain);
    let accel = testing::write(world.dir.path(), Fake::Good);
    let config =
        Config { accel: Some(accel.clone()), tract: Some(tract.clone()), ..world.config() };
    let agent = world.join(config).await;
    let model = world.register(waves(), &ModelConfig::default()).await;
    let helped = Helped { world, agent, model };
    let (_, expected) = helped.ask_until(|report| report.engine == "cuda").await;
    testing::stop_all(&tract);
    testing::stop_all(&accel);
    for _ in 0..2 {
        let task = ask(&helped.model, "");
        let (report, outputs) = helped.world.infer_within(2 * DEADLINE, &task, &input(1)).await;
        let report = inferred(report);
        assert!(report.engine == "cuda" && near(&outputs, &expected), "{report:?}");
        assert!(report.refused_engines.iter().all(|refused| refused.engine != "ort-cpu"));
    }
    helped.agent.stop().await;
}

/// `native` does not take the model, and the other engine of the CPU hangs or ends while it loads
/// it. Once that one has it the numbers are checked.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_cpus_helper_fails_to_load_onnx_runtime_answers_in_time() {
    let mut expected = None;
    for (fake, words, recovers) in [
        (Fake::Plain, "", true),
        (Fake::HangsAtHello, "it does not have the model after", false),
        (Fake::HangsLoading, "it does not have the model after", false),
        (Fake::EndsLoading, "exit code 3", false),
        (Fake::EndsLoadingOnce, "exit code 3", true),
    ] {
        let world = World::new().await;
        let tract = Some(testing::write(world.dir.path(), fake));
        let accel = Some(testing::write(world.dir.path(), Fake::Both));
        let agent = world.join(Config { accel, tract, ..world.config() }).await;
        let model = world.register(waves(), &ModelConfig::default()).await;
        let helped = Helped { world, agent, model };
        let (report, outputs) = helped.ask_in_time("", 1).await;
        let expected = expected.get_or_insert_with(|| outputs.clone());
        assert!(near(&outputs, expected), "{fake:?}");
        let unchecked = |report: &InferReport| {
            let of = |refused: &&RefusedEngine| refused.reason.contains("no second engine");
            report.refused_engines.iter().find(of).cloned()
        };
        if words.is_empty() {
            assert!(report.engine == "tract" && unchecked(&report).is_none(), "{report:?}");
        } else {
            assert_eq!(report.engine, "ort-cpu", "{fake:?}");
            let why = unchecked(&report).unwrap();
            assert!(why.engine == "tract" && why.reason.contains(words), "{why:?}");
        }
        if recovers {
            helped.ask_until(|report| unchecked(report).is_none()).await;
            let (report, outputs) = helped.ask_in_time("ort-cpu", 1).await;
            assert!(unchecked(&report).is_none() && near(&outputs, expected), "{report:?}");
        } else {
            let (report, _) = helped.ask_in_time("", 2).await;
            assert!(unchecked(&report).is_some(), "{report:?}");
        }
        helped.agent.stop().await;
    }
}
