// Package loglimit keeps what happens again and again, or what strangers can
// cause, from filling a log. Its nouns are [Interval], [Repeats] and [Once];
// their zero values are ready for use, and they are safe for concurrent use.
package loglimit
