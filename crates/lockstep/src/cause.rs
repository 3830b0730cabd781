//! What caused an error, which the error itself does not say.

use std::error::Error;

/// An error, what caused it, what caused that, and so on.
pub(crate) fn causes<'a>(
    error: &'a (dyn Error + 'static),
) -> impl Iterator<Item = &'a (dyn Error + 'static)> + use<'a> {
    std::iter::successors(Some(error), |&error| error.source())
}

/// All of it in one line.
pub(crate) fn chain(error: &(dyn Error + 'static)) -> String {
    causes(error).map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

/// The last cause alone: "Connection refused" rather than "error sending request".
pub(crate) fn innermost(error: &(dyn Error + 'static)) -> String {
    causes(error).last().expect("the error itself is one").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fmt;

    #[derive(Debug)]
    struct Layer(&'static str, Option<Box<Layer>>);

    impl fmt::Display for Layer {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(self.0)
        }
    }

    impl Error for Layer {
        fn source(&self) -> Option<&(dyn Error + 'static)> {
            self.1.as_deref().map(|layer| layer as _)
        }
    }

    #[test]
    fn an_error_is_told_with_what_caused_it() {
        let refused = || Layer("connection refused", None);
        let sent = Layer("cannot send", Some(Box::new(Layer("cannot connect", Some(Box::new(refused()))))));
        assert_eq!(chain(&sent), "cannot send: cannot connect: connection refused");
        assert_eq!((chain(&refused()), innermost(&sent)), (innermost(&refused()), chain(&refused())));
    }
}
