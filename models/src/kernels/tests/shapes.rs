//! Operators that move elements, and means.

use super::*;

#[test]
fn mean_and_reshape() {
    let mut draw = Draw::new(7);
    let case = |op: Op, input: &[usize], output: &[usize]| Case {
        op,
        n: 3,
        inputs: vec![Shape::batched(input)],
        states: Vec::new(),
        output: output.to_vec(),
    };
    case(Op::GlobalAveragePool, &[2, 3, 5], &[2, 1, 1]).check(&mut draw);
    case(Op::GlobalAveragePool, &[4], &[4]).check(&mut draw);
    for (from, to) in [
        (vec![2, 3, 2], vec![12]),
        (vec![12], vec![2, 3, 2]),
        (vec![4, 3], vec![6, 2]),
        (vec![3, 4], vec![3, 2, 2]),
        (vec![5, 1, 1], vec![5]),
    ] {
        case(Op::Reshape, &from, &to).check(&mut draw);
    }
}

#[test]
fn transpose() {
    let mut draw = Draw::new(14);
    for (from, axes) in [
        (vec![4, 5, 3], vec![2, 0, 1]),
        (vec![3, 4, 5], vec![1, 2, 0]),
        (vec![2, 3], vec![1, 0]),
        (vec![3], vec![0]),
        (vec![2, 3, 1, 4], vec![0, 3, 2, 1]),
    ] {
        let output = axes.iter().map(|axis| from[*axis]).collect();
        let inputs = vec![Shape::batched(&from)];
        let op = Op::Transpose { axes };
        Case { op, n: 3, inputs, states: Vec::new(), output }.check(&mut draw);
    }
}

#[test]
fn concat() {
    let mut draw = Draw::new(15);
    for axis in 0..3 {
        for lengths in [vec![2, 3], vec![1], vec![4, 1, 2]] {
            let shape = |length: usize| {
                let mut dims = vec![2, 3, 4];
                dims[axis] = length;
                dims
            };
            let inputs = lengths.iter().map(|length| Shape::batched(&shape(*length))).collect();
            let output = shape(lengths.iter().sum());
            let op = Op::Concat { axis };
            Case { op, n: 3, inputs, states: Vec::new(), output }.check(&mut draw);
        }
    }
}
