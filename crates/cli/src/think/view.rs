//! Showing an episode while it runs.

use std::collections::BTreeMap;
use std::io::{self, Write};

use asyncthink_rollout::{Agent, RolloutEvent};
use console::{Style, Term};
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::lanes::{Lanes, Line, Mark, break_at, name};

/// Redraws of the lanes per second.
const REDRAWS_PER_SECOND: u8 = 12;

/// Columns of the token count at the end of a lane, with the space before it.
const COUNT_COLUMNS: usize = 7;

/// Columns of text that a lane has at least, on the narrowest terminal.
const MIN_TEXT_COLUMNS: usize = 10;

/// Shows what happens.
pub(crate) trait View {
    /// Something happened.
    fn event(&mut self, event: &RolloutEvent<'_>) -> io::Result<()>;

    /// A step is over.
    fn refresh(&mut self) -> io::Result<()>;

    /// The episode is over, or was stopped.
    fn finish(&mut self) -> io::Result<()>;
}

/// Shows nothing.
pub(crate) struct Silent;

impl View for Silent {
    fn event(&mut self, _: &RolloutEvent<'_>) -> io::Result<()> {
        Ok(())
    }

    fn refresh(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn finish(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Lines of `name | text`, each when it is complete.
pub(crate) struct PlainView<'a> {
    out: &'a mut dyn Write,
    lanes: Lanes,
}

impl<'a> PlainView<'a> {
    pub(crate) fn new(out: &'a mut dyn Write) -> Self {
        Self {
            out,
            lanes: Lanes::default(),
        }
    }

    fn show(&mut self, lines: &[Line]) -> io::Result<()> {
        for Line { agent, mark, text } in lines {
            writeln!(self.out, "{} {} {text}", name(*agent), mark.symbol())?;
        }
        if lines.is_empty() {
            return Ok(());
        }
        self.out.flush()
    }
}

impl View for PlainView<'_> {
    fn event(&mut self, event: &RolloutEvent<'_>) -> io::Result<()> {
        let lines = self.lanes.event(event);
        self.show(&lines)
    }

    fn refresh(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn finish(&mut self) -> io::Result<()> {
        let lines = self.lanes.flush_all();
        self.show(&lines)
    }
}

/// A lane per running agent at the bottom of the terminal, with the line that
/// it is writing; complete lines scroll away above.
pub(crate) struct LiveView {
    lanes: Lanes,
    /// Lines of the step that is under way.
    pending: Vec<Line>,
    multi: MultiProgress,
    bars: BTreeMap<Agent, ProgressBar>,
    /// Columns of the terminal, which may change.
    columns: fn() -> usize,
}

impl LiveView {
    /// `None` where standard output is no terminal that can be redrawn.
    pub(crate) fn on_stdout() -> Option<Self> {
        let target = ProgressDrawTarget::stdout_with_hz(REDRAWS_PER_SECOND);
        let columns = || usize::from(Term::stdout().size().1);
        (!target.is_hidden()).then(|| Self::new(target, columns))
    }

    fn new(target: ProgressDrawTarget, columns: fn() -> usize) -> Self {
        Self {
            lanes: Lanes::default(),
            pending: Vec::new(),
            multi: MultiProgress::with_draw_target(target),
            bars: BTreeMap::new(),
            columns,
        }
    }

    /// Prints the pending lines above the lanes, in as many rows as they need.
    fn show(&mut self) -> io::Result<()> {
        let columns = (self.columns)();
        let mut rows = Vec::new();
        for Line { agent, mark, text } in std::mem::take(&mut self.pending) {
            let style = match mark {
                Mark::Decoded => Style::new(),
                Mark::Injected | Mark::Note => Style::new().dim(),
            };
            let mut rest = text.as_str();
            loop {
                let end = break_at(rest, text_columns(columns, agent)).unwrap_or(rest.len());
                let (row, after) = rest.split_at(end);
                let row = style.apply_to(row);
                rows.push(format!("{} {} {row}", styled_name(agent), mark.symbol()));
                rest = after;
                if rest.is_empty() {
                    break;
                }
            }
        }
        if rows.is_empty() {
            return Ok(());
        }
        self.multi.println(rows.join("\n"))
    }

    /// A lane for each agent that has not ended, and for no other.
    fn update_bars(&mut self) {
        let Self {
            lanes, multi, bars, ..
        } = self;
        bars.retain(|agent, bar| {
            let is_active = lanes.active().any(|(active, _)| active == *agent);
            if !is_active {
                bar.finish_and_clear();
                multi.remove(bar);
            }
            is_active
        });
        for (agent, lane) in lanes.active() {
            let bar = bars.entry(agent).or_insert_with(|| {
                let bar = multi.add(ProgressBar::new_spinner());
                bar.set_style(lane_style());
                bar.set_prefix(format!("{} |", styled_name(agent)));
                bar
            });
            bar.set_position(lane.num_tokens());
            bar.set_message(lane.doing());
        }
    }
}

impl View for LiveView {
    fn event(&mut self, event: &RolloutEvent<'_>) -> io::Result<()> {
        self.pending.extend(self.lanes.event(event));
        Ok(())
    }

    fn refresh(&mut self) -> io::Result<()> {
        let columns = (self.columns)();
        let lines = self.lanes.cut(|agent| text_columns(columns, agent));
        self.pending.extend(lines);
        // Before the lines, whose printing draws the lanes too.
        self.update_bars();
        self.show()
    }

    fn finish(&mut self) -> io::Result<()> {
        self.pending.extend(self.lanes.flush_all());
        self.show()?;
        for (_, bar) in std::mem::take(&mut self.bars) {
            bar.finish_and_clear();
            self.multi.remove(&bar);
        }
        self.multi.clear()
    }
}

fn lane_style() -> ProgressStyle {
    ProgressStyle::with_template("{prefix} {wide_msg} {pos:>6}")
        .unwrap_or_else(|_| ProgressStyle::default_spinner())
}

/// Columns between the prefix of a lane and its token count.
fn text_columns(columns: usize, agent: Agent) -> usize {
    // Name, space, mark, space.
    let prefix = name(agent).len() + 3;
    columns
        .saturating_sub(prefix + COUNT_COLUMNS)
        .max(MIN_TEXT_COLUMNS)
}

/// The agent's name in its colour, where colours are shown.
fn styled_name(agent: Agent) -> String {
    let style = match agent {
        Agent::Organizer => Style::new().bold(),
        Agent::Worker(worker) => match worker.0 % 5 {
            0 => Style::new().cyan(),
            1 => Style::new().green(),
            2 => Style::new().yellow(),
            3 => Style::new().magenta(),
            _ => Style::new().blue(),
        },
    };
    style.apply_to(name(agent)).to_string()
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use asyncthink_rollout::{AgentEvent, Outcome, WorkerEnd};
    use indicatif::TermLike;

    use super::super::lanes::tests::{ORGANIZER, WORKER, decoded, event, forked};
    use super::*;

    const COLUMNS: u16 = 40;

    /// A terminal without an end: characters in rows, and where the cursor is.
    #[derive(Debug, Default)]
    struct Grid {
        rows: Vec<Vec<char>>,
        row: usize,
        column: usize,
    }

    impl Grid {
        fn put(&mut self, c: char) {
            assert!(!c.is_control(), "{c:?}");
            if self.column == usize::from(COLUMNS) {
                (self.row, self.column) = (self.row + 1, 0);
            }
            let num_rows = self.rows.len().max(self.row + 1);
            self.rows.resize(num_rows, Vec::new());
            let row = &mut self.rows[self.row];
            let num_columns = row.len().max(self.column + 1);
            row.resize(num_columns, ' ');
            row[self.column] = c;
            self.column += 1;
        }
    }

    #[derive(Clone, Debug, Default)]
    struct Screen(Arc<Mutex<Grid>>);

    impl Screen {
        /// The rows that hold something.
        fn rows(&self) -> Vec<String> {
            self.with(|grid| {
                let rows = grid.rows.iter().map(String::from_iter);
                let rows = rows.map(|row| row.trim_end().to_owned());
                rows.filter(|row| !row.is_empty()).collect()
            })
        }

        fn with<T>(&self, change: impl FnOnce(&mut Grid) -> T) -> T {
            change(&mut self.0.lock().expect("no panic"))
        }
    }

    impl TermLike for Screen {
        fn width(&self) -> u16 {
            COLUMNS
        }

        fn move_cursor_up(&self, n: usize) -> io::Result<()> {
            self.with(|grid| grid.row -= n);
            Ok(())
        }

        fn move_cursor_down(&self, n: usize) -> io::Result<()> {
            self.with(|grid| grid.row += n);
            Ok(())
        }

        fn move_cursor_right(&self, n: usize) -> io::Result<()> {
            self.with(|grid| grid.column += n);
            Ok(())
        }

        fn move_cursor_left(&self, n: usize) -> io::Result<()> {
            self.with(|grid| grid.column -= n);
            Ok(())
        }

        fn write_line(&self, s: &str) -> io::Result<()> {
            self.write_str(s)?;
            self.with(|grid| (grid.row, grid.column) = (grid.row + 1, 0));
            Ok(())
        }

        fn write_str(&self, s: &str) -> io::Result<()> {
            self.with(|grid| s.chars().for_each(|c| grid.put(c)));
            Ok(())
        }

        fn clear_line(&self) -> io::Result<()> {
            self.with(|grid| {
                let at = grid.row;
                if let Some(row) = grid.rows.get_mut(at) {
                    row.clear();
                }
                grid.column = 0;
            });
            Ok(())
        }

        fn flush(&self) -> io::Result<()> {
            Ok(())
        }
    }

    fn live(screen: &Screen) -> LiveView {
        console::set_colors_enabled(false);
        // Without a rate every change is drawn.
        let target = ProgressDrawTarget::term_like(Box::new(screen.clone()));
        LiveView::new(target, || usize::from(COLUMNS))
    }

    fn show(view: &mut dyn View, events: &[RolloutEvent<'_>]) {
        for event in events {
            view.event(event).expect("shown");
        }
        view.refresh().expect("shown");
    }

    #[test]
    fn running_agents_have_lanes_and_their_lines_stay() {
        let screen = Screen::default();
        let mut view = live(&screen);
        let fork = decoded(ORGANIZER, b"a <FORK7>q</FORK7>");
        show(&mut view, &[fork]);
        let lane = format!("organizer | {:<21} {:>6}", "a <FORK7>q</FORK7>", 1);
        assert_eq!(screen.rows(), [lane]);
        show(&mut view, &[forked(), decoded(ORGANIZER, b"on \x1b[2J")]);
        show(&mut view, &[decoded(WORKER, b"work")]);
        assert_eq!(
            screen.rows(),
            [
                "organizer | a <FORK7>q</FORK7>".to_owned(),
                "worker 1 * forked as sub-query 7".to_owned(),
                format!("organizer | {:<21} {:>6}", "on \\u{1b}[2J", 2),
                format!("worker 1 | {:<22} {:>6}", "work", 1),
            ]
        );
        let returned = WorkerEnd::Returned(String::new());
        let answered = Outcome::Answered("1".to_owned());
        show(
            &mut view,
            &[
                event(WORKER, AgentEvent::Ended(&returned)),
                event(ORGANIZER, AgentEvent::Finished(&answered)),
            ],
        );
        view.finish().expect("shown");
        assert_eq!(
            screen.rows(),
            [
                "organizer | a <FORK7>q</FORK7>",
                "worker 1 * forked as sub-query 7",
                "worker 1 | work",
                "worker 1 * returned; 1 token",
                "organizer | on \\u{1b}[2J",
                "organizer * answered; 2 tokens",
            ]
        );
    }

    #[test]
    fn long_lines_scroll_away_as_they_fill() {
        let screen = Screen::default();
        let mut view = live(&screen);
        let words = "word ".repeat(12);
        show(&mut view, &[decoded(ORGANIZER, words.as_bytes())]);
        let rows = screen.rows();
        let full = "organizer | word word word word";
        assert_eq!(rows[..2], [full, full]);
        assert!(rows[2].starts_with(full), "{rows:?}");
        let widest = rows.iter().map(String::len).max();
        assert!(widest <= Some(usize::from(COLUMNS)), "{rows:?}");
    }

    #[test]
    fn plain_lines_appear_when_they_are_complete() {
        let mut out = Vec::new();
        let mut view = PlainView::new(&mut out);
        show(&mut view, &[decoded(ORGANIZER, b"a\nb\x1b\xe2\x82")]);
        view.finish().expect("shown");
        assert_eq!(
            String::from_utf8(out).expect("text"),
            "organizer | a\norganizer | b\\u{1b}\u{fffd}\n"
        );
    }
}
