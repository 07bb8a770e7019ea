// Package loglimit limits how often messages are logged that would otherwise
// fill a log: those that repeat, and those that anyone on the network can
// cause.
//
// [Interval] limits all messages of one kind, [Repeats] those with the same
// text, and [Once] allows one message for each key. [Burst] makes one message
// of several. Their zero values are ready for use. They are safe for concurrent
// use.
package loglimit
