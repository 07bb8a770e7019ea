package broker

import (
	"time"

	"github.com/cantuslog/cantus/subjects"
)

// Range is what an option that is a number may be. Sizes are in bytes,
// durations in nanoseconds.
type Range struct {
	Option      string // the field of [Options]
	Least, Most int64
}

// Ranges returns the ranges of all options that have one. A zero value stands
// for the option's default.
func Ranges() (all []Range) {
	for _, r := range ranges {
		all = append(all, r.Range)
	}
	return all
}

// optionRange is a Range with what a check of it needs.
type optionRange struct {
	Range
	what  string // in errors
	value func(*Options) int64
	show  func(int64) any
}

var ranges = []optionRange{
	number("Partitions", "partitions", 0, subjects.MaxPartitions, func(o *Options) int64 { return int64(o.Partitions) }),
	number("MaxLocks", "locks", 1, 1<<30, func(o *Options) int64 { return int64(o.MaxLocks) }),
	number("MaxMsgIDs", "message ids", 1, 1<<30, func(o *Options) int64 { return int64(o.MaxMsgIDs) }),
	span("MsgIDWindow", "message id window", time.Second, 24*time.Hour, func(o *Options) time.Duration {
		if o.MsgIDWindow == WholeLog {
			return 24 * time.Hour
		}
		return o.MsgIDWindow
	}),
	number("QueueBytes", "queue bytes", 1<<16, 1<<34, func(o *Options) int64 { return int64(o.QueueBytes) }),
	number("CacheBytes", "cache bytes", 1<<16, 1<<36, func(o *Options) int64 { return int64(o.CacheBytes) }),
	number("MinFreeBytes", "free bytes (--reserve)", 0, 1<<50, func(o *Options) int64 { return o.MinFreeBytes }),
	span("ElectionTimeout", "election timeout (--election-timeout)", 20*time.Millisecond, time.Minute, func(o *Options) time.Duration { return o.ElectionTimeout }),
	number("CatchUpRate", "catch-up rate in bytes a second", 1<<20, 1<<40, func(o *Options) int64 { return o.CatchUpRate }),
	number("ScrubRate", "scrub rate in bytes a second", 1<<10, 1<<40, func(o *Options) int64 {
		if o.ScrubRate < 0 { // never
			return 1 << 10
		}
		return o.ScrubRate
	}),
	span("ScrubInterval", "scrub interval", 1, 366*24*time.Hour, func(o *Options) time.Duration { return o.ScrubInterval }),
	span("RetentionInterval", "retention interval", 100*time.Millisecond, 366*24*time.Hour, func(o *Options) time.Duration { return o.RetentionInterval }),
}

func number(option, what string, least, most int64, value func(*Options) int64) optionRange {
	return optionRange{Range{option, least, most}, what, value, func(n int64) any { return n }}
}

func span(option, what string, least, most time.Duration, value func(*Options) time.Duration) optionRange {
	return optionRange{Range{option, int64(least), int64(most)}, what, func(o *Options) int64 { return int64(value(o)) },
		func(n int64) any { return time.Duration(n) }}
}
