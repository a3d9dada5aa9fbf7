//! Requests of many examples.

use super::*;

/// An engine is held to the CPU's with many examples too. It gets one after the other until then,
/// and where it did not take them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_wrong_for_many_examples_never_answers_and_who_takes_one_is_given_one() {
    for fake in [Fake::WrongBatches, Fake::TakesOne, Fake::Good] {
        let helped = Helped::new(fake).await;
        let model = helped.world.register(onnx(16), &ModelConfig::default()).await;
        let many = |engine: &str| {
            let mut task = ask(&model, engine);
            let InferInput::Tensors { tensors } = &mut task.input else { unreachable!() };
            (tensors[0].shape, tensors[0].size) = (vec![3, 3, 16, 16], Size(4 * 9 * 256));
            task
        };
        let input = &input(1)[..4 * 9 * 256];
        let expected = helped.world.infer(&many("native"), input).await.1;
        for asked in 0.. {
            let (report, outputs) = helped.world.infer(&many("cuda"), input).await;
            if let ReportBody::Failed(failure) = &report.body {
                assert_eq!(fake, Fake::WrongBatches, "{failure:?}");
                let words = "21 examples: output 0 differs from the CPU's";
                assert!(failure.message.contains(words), "{failure:?}");
                break;
            }
            let report = inferred(report);
            assert_eq!(report.engine, "cuda", "{report:?}");
            assert_eq!(report.outputs[0].shape, [3, 10]);
            assert!(near(&outputs, &expected), "{fake:?}");
            // Its own time of a call is 3 us.
            let at_once = report.engine_us == 3;
            assert!(at_once || report.engine_us == 9, "{report:?}");
            assert!(!at_once || fake == Fake::Good, "{fake:?}");
            if at_once || (fake == Fake::TakesOne && asked == 20) {
                break;
            }
            assert!(asked < 400, "{report:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        helped.agent.stop().await;
    }
}
