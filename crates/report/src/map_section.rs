//! The section of the page with the map: its pictures, their labels and the legend. No I/O.

use std::error::Error;

use pingfleet_store::{RunDetail, StatusCounts};
use pingfleet_wire::StatusKind;

use crate::{
    map::{MapPart, Maps, PrefixMap, Shade},
    picture,
    sections::{by_status, not_up_of},
    table::Table,
    words::{grouped, sign},
};

/// The longer side of a map in the units of its drawing, in which its labels have 11.
const MAP_SIDE: f64 = 512.0;

/// The width of a letter of a label, the height of its line with the space above, and the space beside it.
const LETTER: f64 = 6.7;
const LINE: f64 = 13.0;
const MARGIN: f64 = 4.0;

/// The map, or why there is none.
pub(crate) struct MapSection {
    pub(crate) note: String,
    pub(crate) maps: Vec<MapPicture>,
    pub(crate) legend: Vec<LegendItem>,
    pub(crate) table: Option<Table>,
}

/// A picture with labels over it, in units of its drawing.
pub(crate) struct MapPicture {
    pub(crate) prefix: String,
    /// For a small map: how many of its targets are not up.
    pub(crate) caption: Option<String>,
    pub(crate) width: f64,
    pub(crate) height: f64,
    pub(crate) url: String,
    pub(crate) labels: Vec<MapLabel>,
}

/// A prefix: its frame, and where its name begins.
pub(crate) struct MapLabel {
    pub(crate) text: String,
    pub(crate) x: f64,
    pub(crate) y: f64,
    pub(crate) width: f64,
    pub(crate) height: f64,
    pub(crate) text_x: f64,
    pub(crate) text_y: f64,
}

impl MapLabel {
    fn new(part: &MapPart, scale: f64) -> Self {
        let text = part.prefix.to_string();
        let MapPart { area, room, .. } = *part;
        let [x, y, width, height] =
            [area.x, area.y, area.width, area.height].map(|pixels| f64::from(pixels) * scale);
        // A small frame may have no room for its name, and the part has.
        let last_x = f64::from(room.x + room.width) * scale - LETTER * text.len() as f64 - MARGIN;
        let last_y = f64::from(room.y + room.height) * scale - LINE;
        Self {
            text_x: (x + MARGIN)
                .min(last_x)
                .max(f64::from(room.x) * scale + MARGIN),
            text_y: y.min(last_y).max(f64::from(room.y) * scale) + LINE,
            text,
            x,
            y,
            width,
            height,
        }
    }
}

/// A colour of the map with its words.
pub(crate) struct LegendItem {
    pub(crate) colour: String,
    pub(crate) text: String,
}

impl MapSection {
    pub(crate) fn new(detail: &RunDetail) -> Result<Self, Box<dyn Error + Send + Sync>> {
        let Some(found) = Maps::of(detail) else {
            let note = if detail.subnets.is_empty() {
                "No address is known yet, so there is no map."
            } else {
                "All addresses are IPv6: the map is for IPv4 only. The table of subnets has them."
            };
            return Ok(Self {
                note: note.to_owned(),
                maps: Vec::new(),
                legend: Vec::new(),
                table: None,
            });
        };
        let is_one = found.drawn.len() == 1;
        let mut maps = Vec::new();
        for (map, (_, counts)) in found.drawn.iter().zip(&found.prefixes) {
            maps.push(MapPicture::new(map, (!is_one).then_some(counts))?);
        }
        let pixel = match found.cell {
            32 => "one pixel an address".to_owned(),
            cell => format!("one pixel a /{cell}"),
        };
        let note = match found.drawn.as_slice() {
            [map] => format!("{}, {pixel}, on a Hilbert curve", map.prefix),
            maps => format!(
                "{} networks with targets, {pixel}, each on a Hilbert curve",
                maps.len()
            ),
        };
        let prefixes = found.prefixes.iter();
        let rows = prefixes.map(|(prefix, counts)| (prefix.to_string(), counts));
        Ok(Self {
            note,
            legend: legend(&found),
            table: Some(by_status("", "Status by prefix of the map", "prefix", rows)),
            maps,
        })
    }
}

impl MapPicture {
    fn new(
        map: &PrefixMap,
        counts: Option<&StatusCounts>,
    ) -> Result<Self, Box<dyn Error + Send + Sync>> {
        let scale = MAP_SIDE / f64::from(map.width.max(map.height));
        let labels = map.parts.iter().map(|part| MapLabel::new(part, scale));
        Ok(Self {
            prefix: map.prefix.to_string(),
            caption: counts.map(|counts| {
                format!(
                    "{} of {} not up",
                    grouped(not_up_of(counts)),
                    grouped(counts.total())
                )
            }),
            width: f64::from(map.width) * scale,
            height: f64::from(map.height) * scale,
            labels: labels.collect(),
            url: picture::data_url(map)?,
        })
    }
}

/// The colours that occur.
fn legend(found: &Maps) -> Vec<LegendItem> {
    let is_address = found.cell == 32;
    let words = |shade: Shade| match shade {
        Shade::NotProbed => "□ not probed: excluded, no target, or to do".to_owned(),
        Shade::Answered if is_address => format!("{} up", sign(StatusKind::Up)),
        Shade::Answered => format!("{} all that were probed answered", sign(StatusKind::Up)),
        Shade::FewNotUp => "◔ under 10 % not up".to_owned(),
        Shade::ManyNotUp => "◑ 10 % to half not up".to_owned(),
        Shade::Mostly(status) if is_address => format!("{} {}", sign(status), status.name()),
        Shade::Mostly(status) => format!(
            "{} at least half not up, mostly {}",
            sign(status),
            status.name()
        ),
    };
    let statuses = StatusKind::ALL.into_iter().map(Shade::Mostly);
    [Shade::Answered, Shade::FewNotUp, Shade::ManyNotUp]
        .into_iter()
        .chain(statuses)
        .chain([Shade::NotProbed])
        .filter(|shade| {
            let mut maps = found.drawn.iter();
            maps.any(|map| map.pixels.contains(&shade.index()))
        })
        .map(|shade| {
            let [red, green, blue, opacity] = picture::colour(shade);
            LegendItem {
                colour: format!(
                    "rgba({red},{green},{blue},{:.2})",
                    f64::from(opacity) / 255.0
                ),
                text: words(shade),
            }
        })
        .collect()
}
