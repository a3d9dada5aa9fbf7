//! Pictures made here and decoded again.

use image::{DynamicImage, GrayImage, RgbImage, Rgba, RgbaImage};

use super::*;

fn preprocessing(width: u32, height: u32, channels: u32) -> Preprocessing {
    Preprocessing {
        width,
        height,
        channels,
        layout: Layout::Nchw,
        divisor: 1.0,
        mean: vec![],
        std: vec![],
    }
}

fn encoded(picture: &DynamicImage, format: ImageFormat) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    picture.write_to(&mut bytes, format).unwrap();
    bytes.into_inner()
}

fn png(width: u32, height: u32, pixels: &[u8]) -> Vec<u8> {
    let picture = RgbImage::from_raw(width, height, pixels.to_vec()).unwrap();
    encoded(&DynamicImage::ImageRgb8(picture), ImageFormat::Png)
}

#[test]
fn layouts_and_normalisation() {
    let bytes = png(2, 1, &[10, 20, 30, 40, 50, 60]);
    let mut how = preprocessing(2, 1, 3);
    let tensor = to_tensor(&bytes, &how).unwrap();
    assert_eq!(tensor.shape(), [1, 3, 1, 2]);
    assert_eq!(tensor.as_f32().unwrap(), [10.0, 40.0, 20.0, 50.0, 30.0, 60.0]);
    how.layout = Layout::Nhwc;
    let tensor = to_tensor(&bytes, &how).unwrap();
    assert_eq!(tensor.shape(), [1, 1, 2, 3]);
    assert_eq!(tensor.as_f32().unwrap(), [10.0, 20.0, 30.0, 40.0, 50.0, 60.0]);
    (how.divisor, how.mean, how.std) = (10.0, vec![1.0, 2.0, 3.0], vec![2.0]);
    let tensor = to_tensor(&bytes, &how).unwrap();
    assert_eq!(tensor.as_f32().unwrap(), [0.0, 0.0, 0.0, 1.5, 1.5, 1.5]);
}

#[test]
fn grey_is_bt_601_and_grey_pictures_become_colour() {
    let bytes = png(3, 1, &[255, 0, 0, 0, 255, 0, 0, 0, 255]);
    let tensor = to_tensor(&bytes, &preprocessing(3, 1, 1)).unwrap();
    // 255 times 0.299, 0.587 and 0.114.
    assert_eq!(tensor.as_f32().unwrap(), [76.0, 150.0, 29.0]);
    let picture = DynamicImage::ImageLuma8(GrayImage::from_raw(1, 1, vec![7]).unwrap());
    let bytes = encoded(&picture, ImageFormat::Png);
    let tensor = to_tensor(&bytes, &preprocessing(1, 1, 3)).unwrap();
    assert_eq!(tensor.as_f32().unwrap(), [7.0; 3]);
}

#[test]
fn transparency_is_dropped() {
    let picture = DynamicImage::ImageRgba8(RgbaImage::from_pixel(1, 1, Rgba([9, 8, 7, 0])));
    let bytes = encoded(&picture, ImageFormat::Png);
    let tensor = to_tensor(&bytes, &preprocessing(1, 1, 3)).unwrap();
    assert_eq!(tensor.as_f32().unwrap(), [9.0, 8.0, 7.0]);
}

#[test]
fn resizing_averages_what_is_shrunk() {
    let pixels: Vec<u8> = (0..64).flat_map(|at| [if at % 8 < 4 { 0 } else { 200 }; 3]).collect();
    let tensor = to_tensor(&png(8, 8, &pixels), &preprocessing(2, 2, 1)).unwrap();
    let values = tensor.as_f32().unwrap();
    assert!(
        values[0] < 40.0 && values[1] > 160.0 && (values[0] - values[2]).abs() < 1e-3,
        "{values:?}"
    );
    let tensor = to_tensor(&png(1, 1, &[5, 5, 5]), &preprocessing(3, 2, 1)).unwrap();
    assert_eq!(tensor.as_f32().unwrap(), [5.0; 6]);
}

#[test]
fn jpeg_is_decoded() {
    let picture =
        DynamicImage::ImageRgb8(RgbImage::from_pixel(16, 16, image::Rgb([120, 120, 120])));
    let bytes = encoded(&picture, ImageFormat::Jpeg);
    let tensor = to_tensor(&bytes, &preprocessing(16, 16, 3)).unwrap();
    assert!(tensor.as_f32().unwrap().iter().all(|value| (value - 120.0).abs() <= 2.0));
    let refused = to_tensor(&bytes[..bytes.len() / 3], &preprocessing(16, 16, 3));
    assert!(matches!(refused, Err(PictureError::Decode(_))));
}

#[test]
fn what_is_no_picture_is_refused() {
    let how = preprocessing(2, 2, 3);
    for bytes in
        [&b""[..], b"hello", b"GIF89a\x01\x00\x01\x00", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"]
    {
        let refused = to_tensor(bytes, &how).unwrap_err();
        assert!(matches!(refused, PictureError::Decode(_)), "{refused}");
        assert!(refused.to_string().contains("expected JPEG or PNG"), "{refused}");
    }
}

/// A header that promises 60,000 x 60,000 pixels is refused without decoding.
#[test]
fn pictures_that_are_too_large_are_refused_before_decoding() {
    let mut bytes = png(1, 1, &[0, 0, 0]);
    bytes[16..24].copy_from_slice(&[0, 0, 0xea, 0x60, 0, 0, 0xea, 0x60]);
    let checksum = crc32(&bytes[12..29]);
    bytes[29..33].copy_from_slice(&checksum.to_be_bytes());
    let refused = to_tensor(&bytes, &preprocessing(2, 2, 3)).unwrap_err();
    assert!(matches!(refused, PictureError::TooLarge { pixels: 3_600_000_000 }), "{refused}");
}

/// Resizing would take a row of floats of this width for each row that is wanted.
#[test]
fn pictures_that_are_too_wide_are_refused_before_decoding() {
    let wide = png(70_000, 1, &vec![0; 3 * 70_000]);
    let refused = to_tensor(&wide, &preprocessing(2, 300, 3)).unwrap_err();
    assert!(
        refused.to_string().contains("70000 x 1 pixels cannot be brought to 2 x 300"),
        "{refused}"
    );
    to_tensor(&wide, &preprocessing(2, 2, 3)).unwrap();
}

/// The checksum of PNG's chunks, bit by bit. Source: PNG specification, annex D.
fn crc32(bytes: &[u8]) -> u32 {
    let step = |crc: u32, _| if crc & 1 == 1 { 0xedb8_8320 ^ (crc >> 1) } else { crc >> 1 };
    !bytes.iter().fold(u32::MAX, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), step))
}

#[test]
fn preprocessing_that_cannot_be_used_is_refused() {
    let refused = |change: fn(&mut Preprocessing)| {
        let mut how = preprocessing(2, 2, 3);
        change(&mut how);
        to_tensor(&png(1, 1, &[0; 3]), &how).unwrap_err().to_string()
    };
    assert!(refused(|how| how.width = 0).contains("found 0 x 2"));
    assert!(refused(|how| how.channels = 2).contains("found 2"));
    assert!(refused(|how| how.mean = vec![0.0; 2]).contains("1 or 3 values of mean, found 2"));
    assert!(refused(|how| how.std = vec![0.0]).contains("not 0"));
    assert!(refused(|how| how.mean = vec![f32::NAN]).contains("mean must be finite"));
}
