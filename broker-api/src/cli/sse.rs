//! Server-sent events, read piece by piece.
//!
//! Source: WHATWG HTML, "Server-sent events", for `id`, `event` and `data` lines.

/// One event.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct SseEvent {
    /// Where to go on from after a break.
    pub(super) id: String,
    /// The event's word.
    pub(super) name: String,
    /// Its data, lines joined.
    pub(super) data: String,
}

/// Turns bytes into events, wherever the bytes are cut.
#[derive(Debug, Default)]
pub(super) struct SseParser {
    line: Vec<u8>,
    event: SseEvent,
}

impl SseParser {
    /// Reads bytes; the events that they complete.
    pub(super) fn feed(&mut self, bytes: &[u8]) -> Vec<SseEvent> {
        let mut events = Vec::new();
        for byte in bytes {
            if *byte != b'\n' {
                self.line.push(*byte);
                continue;
            }
            let line = String::from_utf8_lossy(&self.line).trim_end_matches('\r').to_owned();
            self.line.clear();
            if let Some(event) = self.end_line(&line) {
                events.push(event);
            }
        }
        events
    }

    fn end_line(&mut self, line: &str) -> Option<SseEvent> {
        if line.is_empty() {
            let event = std::mem::take(&mut self.event);
            self.event.id.clone_from(&event.id);
            return (!event.data.is_empty()).then_some(event);
        }
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "id" => value.clone_into(&mut self.event.id),
            "event" => value.clone_into(&mut self.event.name),
            "data" => {
                if !self.event.data.is_empty() {
                    self.event.data.push('\n');
                }
                self.event.data.push_str(value);
            }
            // Comments keep the connection open.
            _ => {}
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_survive_every_cut() {
        let text = ": hello\r\nretry: 1000\n\nid: 7\nevent: accepted\ndata: {\"a\":\r\ndata: 1}\n\n\
            : keep-alive\n\nid:8\ndata:x\n\ndata: unfinished";
        let whole = SseParser::default().feed(text.as_bytes());
        let expected =
            [("7", "accepted", "{\"a\":\n1}"), ("8", "", "x")].map(|(id, name, data)| SseEvent {
                id: id.into(),
                name: name.into(),
                data: data.into(),
            });
        assert_eq!(whole, expected);
        for cut in 0..text.len() {
            let mut parser = SseParser::default();
            let mut events = parser.feed(&text.as_bytes()[..cut]);
            events.extend(parser.feed(&text.as_bytes()[cut..]));
            assert_eq!(events, expected, "cut at {cut}");
        }
    }
}
