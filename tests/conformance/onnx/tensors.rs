//! Tensors as the ONNX project's tests keep them.

use models::onnx::{TensorProto, data_type_name};
use models::tensor::{Data, Tensor};
use prost::Message as _;

/// Numbers of `TensorProto.DataType`.
const FLOAT: i32 = 1;
const UINT8: i32 = 2;
const INT8: i32 = 3;
const UINT16: i32 = 4;
const INT16: i32 = 5;
const INT32: i32 = 6;
const INT64: i32 = 7;
const BOOL: i32 = 9;
const FLOAT16: i32 = 10;
const DOUBLE: i32 = 11;
const UINT32: i32 = 12;
const UINT64: i32 = 13;
const BFLOAT16: i32 = 16;

/// The element type of the host tensor that holds values of an element type: its own, or a wider
/// one. 64-bit integers without sign keep their bits.
pub(crate) fn host(element: i32) -> Option<i32> {
    match element {
        FLOAT | UINT8 | INT8 | INT32 | INT64 | BOOL | DOUBLE => Some(element),
        FLOAT16 | BFLOAT16 => Some(FLOAT),
        UINT16 | INT16 => Some(INT32),
        UINT32 | UINT64 => Some(INT64),
        _ => None,
    }
}

/// Whether elements are 16-bit floats.
pub(crate) fn half(proto: &TensorProto) -> bool {
    matches!(proto.data_type, FLOAT16 | BFLOAT16)
}

/// The message in a file such as `input_0.pb`.
pub(crate) fn decode(bytes: &[u8]) -> TensorProto {
    TensorProto::decode(bytes).unwrap()
}

/// The host tensor of a message.
pub(crate) fn tensor(proto: &TensorProto) -> Tensor {
    let (shape, _) = proto.shape().unwrap();
    let data = match proto.data_type {
        FLOAT => Data::F32(values(proto, &proto.float_data, f32::from_le_bytes)),
        DOUBLE => Data::F64(values(proto, &proto.double_data, f64::from_le_bytes)),
        INT64 => Data::I64(values(proto, &proto.int64_data, i64::from_le_bytes)),
        INT32 => Data::I32(values(proto, &proto.int32_data, i32::from_le_bytes)),
        INT8 => Data::I8(small(proto, i8::from_le_bytes)),
        UINT8 => Data::U8(small(proto, u8::from_le_bytes)),
        BOOL => Data::Bool(small(proto, |[byte]: [u8; 1]| byte != 0)),
        INT16 => Data::I32(small(proto, |bytes| i32::from(i16::from_le_bytes(bytes)))),
        UINT16 => Data::I32(small(proto, |bytes| i32::from(u16::from_le_bytes(bytes)))),
        FLOAT16 => Data::F32(small(proto, |bytes| f16(u16::from_le_bytes(bytes)))),
        BFLOAT16 => Data::F32(small(proto, |[low, high]| f32::from_le_bytes([0, 0, low, high]))),
        UINT32 => {
            let listed: Vec<u32> =
                proto.uint64_data.iter().map(|value| u32::try_from(*value).unwrap()).collect();
            let values = values(proto, &listed, u32::from_le_bytes);
            Data::I64(values.into_iter().map(i64::from).collect())
        }
        UINT64 => {
            let values = values(proto, &proto.uint64_data, u64::from_le_bytes);
            Data::I64(values.into_iter().map(u64::cast_signed).collect())
        }
        other => panic!("{:?} has elements of {}", proto.name, data_type_name(other)),
    };
    Tensor::new(&shape, data).unwrap()
}

/// Values from the raw bytes, or those that the message lists.
fn values<T: Copy, const BYTES: usize>(
    proto: &TensorProto,
    listed: &[T],
    from_le_bytes: impl Fn([u8; BYTES]) -> T,
) -> Vec<T> {
    match &proto.raw_data {
        Some(raw) => raw.as_chunks().0.iter().map(|chunk| from_le_bytes(*chunk)).collect(),
        None => listed.to_vec(),
    }
}

/// The same for types that are listed as the lowest bytes of 32-bit integers.
fn small<T: Copy, const BYTES: usize>(
    proto: &TensorProto,
    from_le_bytes: impl Fn([u8; BYTES]) -> T,
) -> Vec<T> {
    let listed: Vec<T> = proto
        .int32_data
        .iter()
        .map(|value| from_le_bytes(*value.to_le_bytes().first_chunk().unwrap()))
        .collect();
    values(proto, &listed, from_le_bytes)
}

/// A 16-bit float of IEEE 754 as 32-bit one.
fn f16(bits: u16) -> f32 {
    let (exponent, fraction) = ((bits >> 10) & 31, f32::from(bits & 1023));
    let magnitude = match exponent {
        0 => fraction * 2_f32.powi(-24),
        31 if fraction > 0.0 => f32::NAN,
        31 => f32::INFINITY,
        _ => (1024.0 + fraction) * 2_f32.powi(i32::from(exponent) - 25),
    };
    if bits >> 15 == 1 { -magnitude } else { magnitude }
}

#[test]
fn half_floats_are_read() {
    let cases = [
        (0x0000, 0.0),
        (0x3c00, 1.0),
        (0xc000, -2.0),
        (0x7bff, 65504.0),
        (0x0001, 5.960_464_5e-8),
        (0x0400, 6.103_515_6e-5),
        (0x3555, 0.333_251_95),
        (0xfc00, f32::NEG_INFINITY),
    ];
    for (bits, expected) in cases {
        assert_eq!(f16(bits).to_bits(), f32::to_bits(expected), "{bits:x}");
    }
    assert!(f16(0x7e00).is_nan());
}
