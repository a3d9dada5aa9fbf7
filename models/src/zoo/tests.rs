use super::*;
use crate::train::{Adam, Optimizer, Sgd, Trainer};

const SGD: Sgd = Sgd { learning_rate: 0.1, momentum: 0.0, weight_decay: 0.0 };

#[test]
fn every_family_takes_every_picture() {
    let all = [[1, 1, 1], [1, 5, 3], [1, 8, 8], [1, 28, 28], [3, 32, 32], [4, 13, 64], [3, 64, 65]];
    for family in FAMILIES {
        // Building and running the large ones takes long.
        let large = cost(family, [3, 32, 32], 7).unwrap().parameters > 6_000_000;
        for shape in all.into_iter().filter(|shape| !large || *shape == [1, 1, 1]) {
            let onnx = build(family, shape, 7, 1).unwrap();
            let mut trainer = Trainer::new(&onnx, SGD).unwrap();
            assert_eq!(trainer.example_shape(), shape, "{family}");
            assert_eq!(trainer.classes(), 7);
            let count = trainer.trained_len() as u64;
            assert_eq!(count, cost(family, shape, 7).unwrap().parameters, "{family} {shape:?}");
            let examples = vec![0.5; shape.iter().product::<usize>() * 2];
            let logits = trainer.logits(&examples).unwrap();
            assert!(logits.len() == 14 && logits.iter().all(|logit| logit.is_finite()));
        }
    }
    assert_eq!(build("vgg", [1, 8, 8], 2, 0), None);
    assert_eq!(build("mlp", [1, 0, 8], 2, 0), None);
    assert_eq!(cost("mlp", [1, 8, 8], 0), None);
}

/// The counts that torchvision publishes for its weights, for 1000 classes, and its billions of
/// operations.
#[test]
fn counts_are_those_of_torchvision() {
    for (family, parameters, giga) in [
        ("resnet18", 11_689_512, 1.81),
        ("resnet34", 21_797_672, 3.66),
        ("resnet50", 25_557_032, 4.09),
        ("resnet101", 44_549_160, 7.80),
        ("vgg11", 132_863_336, 7.61),
        ("mobilenet_v2", 3_504_872, 0.30),
        ("mobilenet_v3_small", 2_542_856, 0.06),
        ("efficientnet_b0", 5_288_548, 0.39),
        ("squeezenet", 1_235_496, 0.35),
    ] {
        let cost = cost(family, [3, 224, 224], 1000).unwrap();
        assert_eq!(cost.parameters, parameters, "{family}");
        #[expect(clippy::cast_precision_loss, reason = "far below 2^53")]
        let found = cost.multiply_adds as f64 / 1e9;
        assert!((found - giga).abs() < 0.01, "{family}: {found} GFLOP, published {giga}");
        assert!(cost.bytes >= 4 * cost.parameters);
    }
    let listed = list([3, 32, 32], 10);
    assert!(listed.iter().map(|(family, _)| *family).eq(FAMILIES));
    assert_eq!(list([0, 1, 1], 10), []);
}

/// A few steps on a tiny batch of pictures of 32x32.
fn learns(family: &str, steps: usize) {
    let onnx = build(family, [3, 32, 32], 4, 7).unwrap();
    let mut trainer = Trainer::new(&onnx, Optimizer::Adam(Adam::new(1e-3))).unwrap();
    let labels = [0, 1, 2, 3];
    let shade = |i: usize| {
        let (example, pixel) = (i / 3072, i % 3072);
        let wave = u16::try_from((pixel * (example + 3)) % 255).unwrap();
        f32::from(wave) / 127.5 - 1.0
    };
    let examples: Vec<f32> = (0..4 * 3072).map(shade).collect();
    let losses: Vec<f64> =
        (0..steps).map(|_| trainer.step(&examples, &labels).unwrap().loss).collect();
    let half = losses.len() / 2;
    let least = losses[half..].iter().copied().fold(f64::INFINITY, f64::min);
    assert!(least < 0.8 * losses[0], "{family}: {losses:?}");
}

#[test]
fn small_networks_learn() {
    for family in ["resnet20", "mobilenet_v3_small", "squeezenet"] {
        learns(family, 20);
    }
}

#[test]
fn mobile_networks_learn() {
    for family in ["mobilenet_v2", "efficientnet_b0"] {
        learns(family, 12);
    }
}

#[test]
fn residual_networks_learn() {
    for family in ["resnet18", "resnet34"] {
        learns(family, 6);
    }
}

#[test]
fn deep_residual_networks_learn() {
    for family in ["resnet50", "resnet101"] {
        learns(family, 5);
    }
}

#[test]
fn vgg_learns() {
    learns("vgg11", 6);
}

#[test]
fn usual_sizes_are_those_of_the_families() {
    let count = |family: &str| {
        Trainer::new(&build(family, [3, 32, 32], 10, 1).unwrap(), SGD).unwrap().trained_len()
    };
    assert_eq!(count("mlp"), 3072 * 64 + 64 + 64 * 10 + 10);
    assert_eq!(count("lenet"), 62_006);
    assert_eq!(count("cnn"), 896 + 18_496 + 40_970);
    assert_eq!(count("resnet8"), 78_042);
    assert_eq!(count("resnet20"), 272_474);
}

#[test]
fn a_seed_gives_the_same_bytes_and_another_gives_others() {
    let one = build("cnn", [1, 8, 8], 10, 1);
    assert_eq!(one, build("cnn", [1, 8, 8], 10, 1));
    assert_ne!(one, build("cnn", [1, 8, 8], 10, 2));
}

/// Initial values by their name.
fn initial(family: &str) -> impl Fn(&str) -> Vec<f32> {
    let onnx = build(family, [3, 32, 32], 10, 3).unwrap();
    let parameters = Trainer::new(&onnx, SGD).unwrap().parameters();
    move |name| {
        let item = parameters.find(name);
        item.unwrap_or_else(|| panic!("no {name}")).values.clone()
    }
}

/// Moments of a distribution, within the error of so many samples: mean 0, the variance, and the
/// fourth moment in squares of the variance, 3 when normal and 1.8 when uniform.
#[track_caller]
fn assert_moments(values: &[f32], variance: f64, fourth: f64) {
    #[expect(clippy::cast_precision_loss, reason = "far below 2^53")]
    let count = values.len() as f64;
    let moment = |power| values.iter().map(|v| f64::from(*v).powi(power)).sum::<f64>() / count;
    let mean = moment(1) / variance.sqrt();
    assert!(mean.abs() < 4.0 / count.sqrt(), "mean {mean} of {count}");
    let ratio = moment(2) / variance;
    assert!((ratio - 1.0).abs() < 4.0 * ((fourth - 1.0) / count).sqrt(), "variance {ratio}");
    let found = moment(4) / variance.powi(2);
    assert!((found - fourth).abs() < 40.0 / count.sqrt(), "fourth moment {found}");
}

const NORMAL: f64 = 3.0;
const UNIFORM: f64 = 1.8;

#[test]
fn initial_weights_have_the_variance_of_he() {
    let values = initial("mlp");
    assert_moments(&values("hidden.weight"), 2.0 / 3072.0, NORMAL);
    assert!(values("hidden.bias").iter().all(|b| *b == 0.0));
}

/// torchvision's `ResNet.__init__`: `kaiming_normal_(mode="fan_out")`, and `Linear`'s own.
#[test]
fn residual_networks_begin_as_those_of_torchvision() {
    for (family, stem, wide, features) in
        [("resnet18", 64.0, 512, 512.0), ("resnet8", 16.0, 64, 64.0)]
    {
        let values = initial(family);
        assert_moments(&values("stem.conv.weight"), 2.0 / (9.0 * stem), NORMAL);
        let (first, shortcut) = match family {
            "resnet18" => ("stage4.block1.conv1", "stage4.block1.shortcut"),
            _ => ("stage3.conv1", "stage3.shortcut"),
        };
        // Twice as many maps out as in, so that the fan in would give another variance.
        let conv = values(&format!("{first}.weight"));
        assert_moments(&conv, 2.0 / (9.0 * features), NORMAL);
        let conv = values(&format!("{shortcut}.conv.weight"));
        assert_moments(&conv, 2.0 / features, NORMAL);
        let norm = ["weight", "bias"].map(|part| values(&format!("{shortcut}.norm.{part}")));
        assert_eq!(norm, [vec![1.0; wide], vec![0.0; wide]]);
        let weights = values("classes.weight");
        assert_moments(&weights, 1.0 / (3.0 * features), UNIFORM);
        let bound = 1.0 / features.sqrt();
        let largest = |values: &[f32]| values.iter().fold(0.0_f32, |max, v| max.max(v.abs()));
        assert!(f64::from(largest(&weights)) <= bound);
        let biases = values("classes.bias");
        assert!(f64::from(largest(&biases)) <= bound && largest(&biases) > 0.0);
    }
}

/// torchvision's `MobileNetV2.__init__` and `EfficientNet.__init__`.
#[test]
fn mobile_networks_begin_as_those_of_torchvision() {
    let values = initial("mobilenet_v2");
    // Each map has one input of its own: the fan out counts all of them.
    assert_moments(&values("block17.depthwise.conv.weight"), 2.0 / (9.0 * 960.0), NORMAL);
    assert_moments(&values("classes.weight"), 1e-4, NORMAL);
    assert!(values("classes.bias").iter().all(|b| *b == 0.0));
    let values = initial("efficientnet_b0");
    assert_moments(&values("last.conv.weight"), 2.0 / 1280.0, NORMAL);
    assert_moments(&values("block16.squeeze.weight"), 2.0 / 48.0, NORMAL);
    assert!(values("block16.squeeze.bias").iter().all(|b| *b == 0.0));
    assert_moments(&values("classes.weight"), 1.0 / 30.0, UNIFORM);
    assert!(values("classes.bias").iter().all(|b| *b == 0.0));
}
