//! Part of Stockade.
