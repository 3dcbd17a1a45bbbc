//! A map as a PNG in a `data:` address. No I/O.
//!
//! The colours are those of one palette on light and on dark ground: what is normal lets the ground through, and the
//! others have a contrast of 3 to 1 on both. The legend of the page has the same ones.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use pingfleet_wire::StatusKind;
use png::{BitDepth, ColorType, Compression, Encoder, EncodingError};

use crate::map::{PrefixMap, Shade};

/// Red, green, blue and opacity of a shade.
pub(crate) const fn colour(shade: Shade) -> [u8; 4] {
    match shade {
        Shade::NotProbed => [128, 138, 150, 48],
        Shade::Answered => [40, 180, 140, 105],
        Shade::FewNotUp => [232, 190, 80, 150],
        Shade::ManyNotUp => [230, 140, 40, 225],
        Shade::Mostly(status) => match status {
            StatusKind::Up => [40, 180, 140, 105],
            StatusKind::Late => [66, 140, 205, 255],
            StatusKind::Unreachable => [190, 120, 10, 255],
            StatusKind::DnsFailed => [165, 95, 195, 255],
            StatusKind::SendFailed => [215, 70, 140, 255],
            StatusKind::Unknown => [122, 133, 147, 255],
            StatusKind::Down => [222, 66, 40, 255],
        },
    }
}

/// All shades, in the order of the palette.
const SHADES: [Shade; Shade::COUNT] = {
    let mut shades = [Shade::NotProbed; Shade::COUNT];
    shades[1] = Shade::Answered;
    shades[2] = Shade::FewNotUp;
    shades[3] = Shade::ManyNotUp;
    let mut status = 0;
    while status < StatusKind::ALL.len() {
        shades[4 + status] = Shade::Mostly(StatusKind::ALL[status]);
        status += 1;
    }
    shades
};

/// The picture as the address of an image.
///
/// # Errors
/// Those of the encoder; a picture of these sizes has none.
pub(crate) fn data_url(map: &PrefixMap) -> Result<String, EncodingError> {
    let mut bytes = Vec::new();
    let mut encoder = Encoder::new(&mut bytes, map.width, map.height);
    encoder.set_color(ColorType::Indexed);
    encoder.set_depth(BitDepth::Four);
    encoder.set_compression(Compression::High);
    encoder.set_palette(
        SHADES
            .map(|shade| {
                let [red, green, blue, _] = colour(shade);
                [red, green, blue]
            })
            .concat(),
    );
    encoder.set_trns(SHADES.map(|shade| colour(shade)[3]).to_vec());
    let mut writer = encoder.write_header()?;
    // Two pixels a byte, the left one in the upper bits; a row begins with a byte (PNG specification, 7.2).
    let rows = map.pixels.chunks(map.width as usize);
    let packed: Vec<u8> = rows
        .flat_map(|row| {
            row.chunks(2)
                .map(|pair| pair[0] << 4 | pair.get(1).copied().unwrap_or(0))
        })
        .collect();
    writer.write_image_data(&packed)?;
    writer.finish()?;
    Ok(format!("data:image/png;base64,{}", STANDARD.encode(bytes)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_picture_has_the_pixels_of_its_map() {
        let shades = [1_u8, 0, 10, 2, 7, 1, 4, 3, 9];
        let map = PrefixMap {
            prefix: "10.0.0.0/24".parse().unwrap(),
            width: 3,
            height: 3,
            pixels: shades.to_vec(),
            parts: Vec::new(),
        };
        let url = data_url(&map).unwrap();
        let encoded = url.strip_prefix("data:image/png;base64,").unwrap();
        let bytes = STANDARD.decode(encoded).unwrap();
        let mut decoder = png::Decoder::new(std::io::Cursor::new(bytes));
        decoder.set_transformations(png::Transformations::EXPAND);
        let mut reader = decoder.read_info().unwrap();
        let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
        reader.next_frame(&mut pixels).unwrap();
        let expected: Vec<_> = shades
            .iter()
            .flat_map(|shade| colour(SHADES[usize::from(*shade)]))
            .collect();
        assert_eq!(pixels, expected);
    }

    #[test]
    fn what_is_wrong_stands_out_on_light_and_on_dark_ground() {
        // Contrast by WCAG 2, on the cards of both themes.
        let luminance = |[red, green, blue]: [f64; 3]| {
            let linear = |value: f64| {
                if value <= 0.04045 {
                    value / 12.92
                } else {
                    ((value + 0.055) / 1.055).powf(2.4)
                }
            };
            0.2126 * linear(red) + 0.7152 * linear(green) + 0.0722 * linear(blue)
        };
        let contrast = |shade: Shade, ground: [u8; 3]| {
            let [red, green, blue, opacity] = colour(shade).map(|part| f64::from(part) / 255.0);
            let ground = ground.map(|part| f64::from(part) / 255.0);
            let mixed =
                [0, 1, 2].map(|at| [red, green, blue][at] * opacity + ground[at] * (1.0 - opacity));
            let [one, other] = [luminance(mixed), luminance(ground)];
            (one.max(other) + 0.05) / (one.min(other) + 0.05)
        };
        for ground in [[255, 255, 255], [23, 31, 41]] {
            for status in &StatusKind::ALL[1..] {
                let found = contrast(Shade::Mostly(*status), ground);
                assert!(found >= 3.0, "{status:?} on {ground:?}: {found:.2}");
            }
            // The control: what is normal is pale.
            assert!(contrast(Shade::Answered, ground) < 3.0);
            assert!(contrast(Shade::NotProbed, ground) < 1.5);
        }
    }
}
