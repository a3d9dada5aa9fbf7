//! Tables: headers, labels, and errors that say where.

use super::*;

fn table(text: &str) -> Result<Dataset, DatasetError> {
    decode(&named(&[("train.csv", text.as_bytes()), ("test.csv", b"")]))
}

fn numbers(examples: &Examples) -> &[f32] {
    let Values::Numbers(numbers) = &examples.values else { panic!("{examples:?}") };
    numbers
}

/// Without a test part of its own, nothing is taken off.
fn whole(text: &str) -> Dataset {
    let files = named(&[("iris.csv", text.as_bytes()), ("dataset.toml", b"test_fraction = 0.0")]);
    decode(&files).unwrap()
}

#[test]
fn headers_are_optional_and_labels_are_names_or_numbers() {
    let plain = whole("5.1,3.5,setosa\n4.9,-3e-1,virginica\n\n5,3,setosa\n");
    assert_eq!((plain.format, plain.classes), ("csv", 2));
    assert_eq!(plain.class_names, ["setosa", "virginica"]);
    assert_eq!(plain.train.labels, [0, 1, 0]);
    assert_eq!(numbers(&plain.train), [5.1, 3.5, 4.9, -0.3, 5.0, 3.0]);
    assert_eq!((plain.example_shape(), plain.columns.len()), (vec![2], 0));

    let headed = whole("label, length,width\r\n3, 5.1,3.5\r\n0.0,4.9,3\r\n");
    assert_eq!((headed.classes, headed.class_names.len()), (4, 0));
    assert_eq!(headed.train.labels, [3, 0]);
    assert_eq!(headed.columns, ["length", "width"]);
    assert_eq!(numbers(&headed.train), [5.1, 3.5, 4.9, 3.0]);

    let open = table("length,species\n1,\"a\n2,c\n3,c\n").unwrap_err().to_string();
    assert!(open.contains("line 2, column 2") && open.contains("quote left open"), "{open}");

    let last = whole("length,species\n1,\"a, b\"\n2,c\n");
    assert_eq!(last.class_names, ["a, b", "c"]);
}

#[test]
fn the_label_column_and_the_classes_can_be_named() {
    let rows = b"kind,x,y\nnut,1,2\nbolt,3,4\n";
    let files = |toml: &[u8], labels: &[u8]| {
        decode(&named(&[("train.csv", rows), ("dataset.toml", toml), ("labels.txt", labels)]))
    };
    let toml = b"label = \"kind\"\ntest_fraction = 0.0";
    let set = files(toml, b"screw\nbolt\nnut\n").unwrap();
    assert_eq!((set.classes, &set.train.labels[..]), (3, &[2, 1][..]));
    let error = files(toml, b"screw\nnut\n").unwrap_err().to_string();
    assert!(error.starts_with("train.csv: line 3: label \"bolt\" is none of the 2"), "{error}");
    let error = files(b"label = \"sort\"", b"nut\nbolt").unwrap_err().to_string();
    assert!(error.contains("no column is named \"sort\""), "{error}");
    let counted = named(&[("a.csv", b"1,0\n2,1\n"), ("dataset.toml", b"classes = 5")]);
    assert_eq!(decode(&counted).unwrap().classes, 5);
    let few = named(&[("a.csv", b"1,0\n2,7\n"), ("dataset.toml", b"classes = 5")]);
    assert!(decode(&few).unwrap_err().to_string().contains("line 2: label \"7\""));
}

#[test]
fn parts_have_the_same_columns_and_classes() {
    let train = b"a,b,label\n1,2,x\n3,4,z\n";
    let set =
        decode(&named(&[("train.csv", train), ("test.csv.gz", &gzip(b"a,b,label\n5,6,y\n"))]));
    let set = set.unwrap();
    assert_eq!(set.class_names, ["x", "y", "z"]);
    assert_eq!((set.train.labels, set.test.labels), (vec![0, 2], vec![1]));
    for other in [&b"a,c,label\n5,6,y\n"[..], b"a,label\n5,y\n"] {
        let error = decode(&named(&[("train.csv", train), ("test.csv", other)])).unwrap_err();
        assert!(error.to_string().contains("expected those of the first file (a, b)"), "{error}");
    }
}

#[test]
fn errors_name_line_and_column() {
    let cases = [
        ("a,b,label\n1,2,x\n1,two,x\n", "line 3, column 2 (\"b\"): found \"two\", expected a num"),
        ("1,2,x\n1,,x\n", "line 2, column 2: found nothing, expected a number"),
        ("1,2,x\n1,inf,x\n", "line 2, column 2: found \"inf\""),
        ("1,2,x\n1,2\n", "line 2: 2 columns, expected 3"),
        ("1,2,x\n1,2,\n", "line 2, column 3: found nothing, expected the label"),
        ("just text\n", "line 1: 1 columns, expected 2"),
        ("0,1,target\n5,6,0\n7,8,1\n", "line 1 looks like a header"),
    ];
    for (text, expected) in cases {
        let error = table(text).unwrap_err().to_string();
        assert!(error.starts_with("train.csv: "), "{error}");
        assert!(error.contains(expected), "{error} does not say {expected:?}");
    }
    assert_eq!(table("a,b,label\n"), Err(DatasetError::Empty));
    let error = decode(&named(&[("a.csv", b"1,2"), ("b.csv", b"1,2")])).unwrap_err();
    assert!(error.to_string().contains("train.csv and test.csv"), "{error}");
    let rows = "1,2,3\n".repeat(600);
    let files = named(&[("a.csv", rows.as_bytes())]);
    let error = super::super::decode(&files, Limits { bytes: 4000 }).unwrap_err();
    assert!(matches!(error, DatasetError::TooLarge { bytes: 4008, max: 4000 }), "{error}");
    // Several files count once each, and none is read that is larger than all may be.
    let parts: Vec<String> = (0..10).map(|part| format!("train{part}.csv")).collect();
    let row: &[u8] = b"1,2,3\n";
    let files: Vec<(&str, &[u8])> = parts.iter().map(|name| (name.as_str(), row)).collect();
    let bytes = super::super::decode(&named(&files), Limits { bytes: 120 }).unwrap().train.bytes();
    assert!(bytes <= 120, "{bytes}");
    let error = super::super::decode(&named(&files), Limits { bytes: 5 }).unwrap_err().to_string();
    assert!(error.starts_with("train0.csv: 6 bytes, at most 5"), "{error}");
}

#[test]
fn tables_are_written_and_read_again() {
    let set = whole("h1,h2,label\n0.1,1e-7,b\n123456.78,-3,\"a \"\"q\"\"\"\n");
    let text = table::encode(&set.train, &set.columns, &set.class_names).unwrap();
    let again = whole(std::str::from_utf8(&text).unwrap());
    assert_eq!((&again.train, &again.columns), (&set.train, &set.columns));
    let odd = "label,x,label_class,species\n1,2,3,0\n4,5,6,1\n";
    let odd_files =
        [("a.csv", odd.as_bytes()), ("dataset.toml", b"label = \"species\"".as_slice())];
    let odd = decode(&named(&odd_files)).unwrap();
    let text = table::encode(&odd.train, &odd.columns, &[]).unwrap();
    let label = table::label_name(&odd.columns);
    let toml = format!("label = {label:?}");
    let written = [("a.csv", &text[..]), ("dataset.toml", toml.as_bytes())];
    let again = decode(&named(&written)).unwrap();
    assert_eq!((&again.columns, again.classes), (&odd.columns, 2), "{label}");
    let plain = whole("1,2,0\n3,4,1\n");
    let text = table::encode(&plain.train, &[], &[]).unwrap();
    assert_eq!(String::from_utf8(text).unwrap(), "x1,x2,label\n1,2,0\n3,4,1\n");
}

#[test]
fn a_fifth_is_for_testing_and_a_seed_says_which() {
    let rows: Vec<String> = (0..50).map(|row| format!("{row},0,{}", row % 3)).collect();
    let rows = rows.join("\n");
    let split = |toml: &str| {
        let files = [("all.csv", rows.as_bytes()), ("dataset.toml", toml.as_bytes())];
        decode(&named(&files)).unwrap()
    };
    let set = split("");
    assert_eq!((set.train.len(), set.test.len()), (40, 10));
    assert_eq!(set, split("seed = 0"));
    assert_ne!(set.test, split("seed = 1").test);
    let firsts = |examples: &Examples| {
        numbers(examples).chunks_exact(2).map(|row| row[0]).collect::<Vec<_>>()
    };
    let mut all = [firsts(&set.train), firsts(&set.test)].concat();
    all.sort_by(f32::total_cmp);
    assert!(all.iter().zip(0_u8..).all(|(row, at)| (row - f32::from(at)).abs() < 0.5));
}
