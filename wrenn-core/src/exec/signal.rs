//! Signals of Linux.

use std::fmt;
use std::str::FromStr;

use crate::error::{Error, Result};

/// A signal of Linux, by number or by name.
///
/// ```
/// use wrenn_core::Signal;
///
/// assert_eq!("SIGHUP".parse::<Signal>()?, Signal::HUP);
/// assert_eq!("usr1".parse::<Signal>()?.number(), 10);
/// assert_eq!(Signal::from_number(15)?.to_string(), "SIGTERM");
/// # Ok::<_, wrenn_core::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Signal(i32);

macro_rules! signals {
    ($($name:ident = $number:literal, $text:literal;)*) => {
        impl Signal {
            $(#[doc = concat!("`SIG", stringify!($name), "`.")] pub const $name: Self = Self($number);)*

            const NAMES: &[(i32, &str, &str)] = &[$(($number, stringify!($name), $text)),*];
        }
    };
}

// The numbers are those of x86-64 and ARM64. The words are those with which the agent tells that a signal ended a
// process.
signals! {
    HUP = 1, "hangup";
    INT = 2, "interrupt";
    QUIT = 3, "quit";
    ILL = 4, "illegal instruction";
    TRAP = 5, "trace/breakpoint trap";
    ABRT = 6, "aborted";
    BUS = 7, "bus error";
    FPE = 8, "floating point exception";
    KILL = 9, "killed";
    USR1 = 10, "user defined signal 1";
    SEGV = 11, "segmentation fault";
    USR2 = 12, "user defined signal 2";
    PIPE = 13, "broken pipe";
    ALRM = 14, "alarm clock";
    TERM = 15, "terminated";
    CHLD = 17, "signal 17";
    CONT = 18, "signal 18";
    STOP = 19, "signal 19";
    TSTP = 20, "signal 20";
    TTIN = 21, "signal 21";
    TTOU = 22, "signal 22";
    URG = 23, "signal 23";
    XCPU = 24, "CPU time limit exceeded";
    XFSZ = 25, "file size limit exceeded";
    WINCH = 28, "signal 28";
    SYS = 31, "signal 31";
}

impl Signal {
    /// The signal with the number `number`, which is 1 to 64.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] for any other number.
    pub fn from_number(number: i32) -> Result<Self> {
        match number {
            1..=64 => Ok(Self(number)),
            _ => Err(Error::invalid(format!("there is no signal {number}: Linux has 1 to 64"))),
        }
    }

    /// The signal's number.
    #[must_use]
    pub fn number(self) -> i32 {
        self.0
    }

    /// Finds the signal in the words with which the agent tells that a signal ended a process.
    pub(super) fn from_words(words: &str) -> Option<Self> {
        let named = Self::NAMES.iter().find(|(.., text)| *text == words).map(|(number, ..)| *number);
        let number = named.or_else(|| words.strip_prefix("signal ")?.parse().ok())?;
        Self::from_number(number).ok()
    }
}

impl fmt::Display for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match Self::NAMES.iter().find(|(number, ..)| *number == self.0) {
            Some((_, name, _)) => write!(f, "SIG{name}"),
            None => write!(f, "signal {}", self.0),
        }
    }
}

impl FromStr for Signal {
    type Err = Error;

    /// A name in any case, with or without `SIG`, or a number.
    fn from_str(text: &str) -> Result<Self> {
        if let Ok(number) = text.parse() {
            return Self::from_number(number);
        }
        let upper = text.to_ascii_uppercase();
        let name = upper.strip_prefix("SIG").unwrap_or(&upper);
        let named = Self::NAMES.iter().find(|(_, known, _)| *known == name);
        named.map(|(number, ..)| Self(*number)).ok_or_else(|| Error::invalid(format!("there is no signal {text:?}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_numbers_and_words_are_the_same_signals() {
        for (number, name, words) in Signal::NAMES {
            let signal = Signal::from_number(*number).unwrap();
            assert_eq!(name.parse::<Signal>().unwrap(), signal);
            assert_eq!(signal.to_string().parse::<Signal>().unwrap(), signal);
            assert_eq!(Signal::from_words(words), Some(signal));
        }
        assert_eq!(Signal::from_words("signal 40").map(Signal::number), Some(40));
        assert_eq!((Signal::from_words("signal 900"), Signal::from_words("whatever")), (None, None));
        for bad in ["", "SIG", "0", "65", "-9", "KILLED"] {
            assert!(bad.parse::<Signal>().is_err(), "{bad}");
        }
    }
}
