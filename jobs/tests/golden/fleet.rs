//! What devices say of themselves.

use std::collections::BTreeMap;

use jobs::device::{
    DatasetFacts, DiskUse, Facts, Goodbye, Heartbeat, Hello, NetworkUse, Refusal, Telemetry,
};
use jobs::engine::EngineFacts;
use jobs::id::{Bytes, Millis, RoundNumber};
use jobs::spec::Purpose;

use super::{Golden, digest, parse, task_id};

fn digits() -> DatasetFacts {
    DatasetFacts {
        name: parse("digits"),
        format: "idx".to_owned(),
        shape: vec![1, 8, 8],
        classes: 2,
        train_examples: 479,
        test_examples: 21,
        train_class_counts: vec![400, 79],
        columns: Vec::new(),
        labels: vec!["0".to_owned(), "1".to_owned()],
        mean: vec![0.25],
        std: vec![0.5],
        channel_mean: vec![0.125],
        channel_std: vec![0.25],
    }
}

fn engine_facts() -> Vec<EngineFacts> {
    let cuda = EngineFacts {
        engine: "cuda".to_owned(),
        device: Some("NVIDIA GeForce RTX 3080 Ti".to_owned()),
        driver: Some("CUDA 12.8".to_owned()),
        library: Some("libonnxruntime.so 1.32.0".to_owned()),
        memory: Some(Bytes(12_884_901_888)),
        gflops: Some(2048.5),
        ..EngineFacts::default()
    };
    let webgpu = EngineFacts {
        engine: "webgpu".to_owned(),
        unusable: Some("no adapter".to_owned()),
        ..EngineFacts::default()
    };
    vec![cuda, webgpu]
}

pub(super) fn fleet(golden: &mut Golden) {
    let hello = Hello {
        device: parse("pi-3"),
        instance: "01kb0000000000000000000000".to_owned(),
        started_at: Millis(1_795_000_000_000),
        heartbeat_ms: Millis(5000),
        agent_version: "0.1.0".to_owned(),
        groups: vec![parse("lab")],
        labels: BTreeMap::from([("site".to_owned(), "Bonn".to_owned())]),
        datasets: vec![digits()],
        engines: vec!["native".to_owned(), "tract".to_owned()],
        engine_facts: engine_facts(),
        facts: Facts {
            arch: "aarch64".to_owned(),
            os: "linux".to_owned(),
            os_version: "Debian GNU/Linux 12".to_owned(),
            kernel: "6.6.31".to_owned(),
            host_name: "pi-3".to_owned(),
            model: "Raspberry Pi 4 Model B Rev 1.4".to_owned(),
            cpu: "Cortex-A72".to_owned(),
            cpus: 4,
            memory: Bytes(4_000_000_000),
            disk: Bytes(32_000_000_000),
        },
        slots: 2,
        masks: true,
        masks_within: true,
    };
    golden.same("hello", &hello);
    let old = Hello {
        masks: false,
        masks_within: false,
        groups: Vec::new(),
        labels: BTreeMap::new(),
        datasets: Vec::new(),
        engines: Vec::new(),
        engine_facts: Vec::new(),
        facts: Facts {
            arch: "armv7l".to_owned(),
            os: "linux".to_owned(),
            cpus: 4,
            memory: Bytes(1_000_000_000),
            ..Facts::default()
        },
        ..hello.clone()
    };
    golden.old("hello", &old);
    let heartbeat = Heartbeat {
        device: parse("pi-3"),
        instance: hello.instance.clone(),
        sequence: 17,
        tasks: vec![task_id(Purpose::Train)],
        models: vec![digest(3)],
    };
    golden.same("heartbeat", &heartbeat);
    golden.old("heartbeat", &Heartbeat { tasks: Vec::new(), models: Vec::new(), ..heartbeat });
    golden.same("goodbye", &Goodbye { device: parse("pi-3"), instance: hello.instance });
    golden.same("telemetry", &telemetry());
    golden.same("telemetry-refused", &refused());
    let old = Telemetry {
        disks: Vec::new(),
        networks: Vec::new(),
        temperatures: BTreeMap::new(),
        agent_memory: Bytes(0),
        ..telemetry()
    };
    golden.old("telemetry", &old);
}

pub(super) fn telemetry() -> Telemetry {
    Telemetry {
        at: Millis(1_795_000_005_000),
        uptime_s: 86_400,
        cpu_percent: 12.5,
        load: [0.5, 0.25, 0.125],
        memory_total: Bytes(4_000_000_000),
        memory_used: Bytes(1_000_000_000),
        memory_available: Bytes(3_000_000_000),
        swap_total: Bytes(100_000_000),
        swap_used: Bytes(0),
        disks: vec![DiskUse {
            mount: "/".to_owned(),
            total: Bytes(32_000_000_000),
            available: Bytes(20_000_000_000),
        }],
        networks: vec![NetworkUse {
            interface: "eth0".to_owned(),
            received: Bytes(123),
            sent: Bytes(456),
        }],
        temperatures: BTreeMap::from([("cpu-thermal".to_owned(), 48.5)]),
        agent_memory: Bytes(9_000_000),
        refusals: Vec::new(),
    }
}

fn refused() -> Telemetry {
    let refusal = Refusal {
        job: parse("01job"),
        round: RoundNumber(3),
        at: Millis(1_795_000_004_000),
        reason: "invalid_update: \"w\" is not finite".to_owned(),
    };
    Telemetry { refusals: vec![refusal], ..telemetry() }
}
