//! Small grey pictures as characters.

/// Pixels across and down that are still shown.
const SIDE_MAX: u32 = 32;
/// From dark to light; two characters make about a square.
const SHADES: [&str; 5] = ["  ", "░░", "▒▒", "▓▓", "██"];

/// A small picture as blocks, `None` when it is not small or no picture.
pub(super) fn blocks(bytes: &[u8]) -> Option<String> {
    let picture = image::load_from_memory(bytes).ok()?.into_luma8();
    if picture.width() > SIDE_MAX || picture.height() > SIDE_MAX {
        return None;
    }
    let rows = picture.rows().map(|row| {
        let row: String =
            row.map(|pixel| SHADES[usize::from(pixel.0[0]) * SHADES.len() / 256]).collect();
        row.trim_end().to_owned()
    });
    Some(rows.collect::<Vec<_>>().join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Cursor;

    fn png(width: u32, height: u32, pixels: Vec<u8>) -> Vec<u8> {
        let picture = image::GrayImage::from_raw(width, height, pixels).unwrap();
        let mut bytes = Vec::new();
        picture.write_to(&mut Cursor::new(&mut bytes), image::ImageFormat::Png).unwrap();
        bytes
    }

    #[test]
    fn small_pictures_are_drawn() {
        let bytes = png(3, 2, vec![0, 255, 0, 60, 128, 200]);
        assert_eq!(blocks(&bytes).unwrap(), "  ██\n░░▒▒▓▓");
        assert_eq!(blocks(&png(40, 1, vec![0; 40])), None);
        assert_eq!(blocks(b"no picture"), None);
    }
}
