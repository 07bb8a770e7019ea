package main

import (
	"io"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/alecthomas/kong"
)

// For each type of number that flags and arguments have: what it takes, what it
// refuses although Go's parser may take it, and what the error says is right.
var numbers = map[reflect.Type]struct {
	good, bad []string
	right     string
}{
	reflect.TypeFor[duration](): {
		[]string{"5s", "1.5s", "1h30m", "500ms", "720h"},
		[]string{"", "0", "0s", "0h0m", "5", "+1s", "-0s", "-1s", ".5s", "1.s", "1 s", "1d", "1e3s", "s"}, "such as 500ms, 5s or 2m",
	},
	reflect.TypeFor[time.Duration](): {
		[]string{"0s", "5s", "1.5s"},
		[]string{"", "0", "5", "+1s", "-0s", "-1s", ".5s", "1d"}, "such as 500ms, 5s or 2m",
	},
	reflect.TypeFor[count](): {
		[]string{"1", "1000000", "1_000_000"},
		[]string{"", "0", "00", "-1", "+1", "-0", "1.5", "1e3", "0x10", "_1", "1_", "1__0", "1,000", " 1", "99999999999999999999"}, "from 1 on",
	},
	reflect.TypeFor[partitionCount](): {
		[]string{"1", "1024"},
		[]string{"", "0", "-1", "+4", "1025", "4.0", "0x4", "4_"}, "1 to 1024",
	},
	reflect.TypeFor[target](): {
		[]string{"0", "1023", "all"},
		[]string{"", "-1", "-0", "+0", "1024", "0.0", "0x1", "ALL"}, "0, 1, …",
	},
	reflect.TypeFor[partition](): {
		[]string{"0", "1023"},
		[]string{"", "-1", "-0", "+0", "1024", "0.0", "0x1"}, "0, 1, …",
	},
	reflect.TypeFor[sessionSeq](): {
		[]string{"1", "18446744073709551615"},
		[]string{"", "0", "-1", "+1", "1.0", "0x1", "18446744073709551616"}, "give a whole number from 1 on",
	},
	reflect.TypeFor[txid](): {
		[]string{"0", "812", "18446744073709551615"},
		[]string{"", "-1", "-0", "+812", "8.0", "1e3", "0x10", "18446744073709551616"}, "a whole number from 0 on",
	},
	reflect.TypeFor[position](): {
		[]string{"0", "812", "18446744073709551615", "2026-11-01", "2026-11-01T08:30", "2026-11-01 08:30:15", "2026-11-01T08:30+01:00", "2026-11-01T08:30:00.123456789Z", "90m"},
		[]string{"", "-1", "+812", "8.0", "18446744073709551616", "2026-11", "26-11-01", "2026-11-31", "2026-11-01T25:00", "2026-11-01T08:30:00,5Z", "9999-01-01", "yesterday", "-2h", "08:30"},
		"a whole number, or a time such as 2026-11-01",
	},
	reflect.TypeFor[moment](): {
		[]string{"2026-11-01", "2026-11-01T08:30:00Z", "1h30m"},
		[]string{"", "812", "2026-11-31", "1677-01-01", "now"}, "is not a time: write a time such as 2026-11-01",
	},
	reflect.TypeFor[byteSize](): {
		[]string{"1B", "1048576B", "256MiB", "1.5GiB", "500MB", "1 GiB", "64k"},
		[]string{"", "0", "0B", "50", "1048576", "1_000", "0.5", "1.5", "-1", "+1", "+1MiB", ".5GiB", "1.GiB", "1,5GiB", "1,000", "1e3", "12q", "MiB", "99999999999GiB"}, "bytes with a unit, such as ",
	},
	reflect.TypeFor[replicaCount](): {
		[]string{"1", "3", "5"},
		[]string{"", "0", "2", "7", "+3", "-3", "3.0", "03"}, "1, 3 or 5",
	},
	reflect.TypeFor[int](): {
		[]string{"0", "256", "-1", "1_000"},
		[]string{"", "+1", "-0", "0x10", "1.5", "1e3", "0b1", "1__0", "99999999999999999999"}, "such as 1000000",
	},
	reflect.TypeFor[int64](): {
		[]string{"0", "256", "-1"},
		[]string{"", "+1", "-0", "0x10", "1.5", "1e3", "0o7"}, "such as 1000000",
	},
	reflect.TypeFor[float64](): {
		[]string{"0", "5000", "0.99", "1e6", "-1"},
		[]string{"", "+1", "-0", "-.5", ".5", "1.", "0x1p4", "inf", "NaN"}, "such as 5000 or 0.99",
	},
	reflect.TypeFor[scrubRate](): {
		[]string{"off", "0", "4MiB", "1500KB"},
		[]string{"", "-1", "+1MiB", "no", "1,5GiB", "on"}, "; or off",
	},
	reflect.TypeFor[idWindow](): {
		[]string{"log", "90s", "2m"},
		[]string{"", "0s", "-1s", "+1m", "2", "Log", "ever"}, "; or log",
	},
	reflect.TypeFor[share](): {
		[]string{"0", "1", "0.01", "1.0"},
		[]string{"", "-0", "-1", "+1", "1.01", "2", ".5", "1%", "NaN", "inf", "0x1p-1"}, "0 to 1, such as 0.01",
	},
	reflect.TypeFor[collectorURL](): {
		[]string{"http://127.0.0.1:4318", "https://otel.example.com/v1/traces", "http://[::1]:4318/"},
		[]string{"", "127.0.0.1:4318", "localhost:4318", "grpc://a:4317", "http://", "http://:4318", "http://a:b", "http://a/?x=1", "http://a/#x", "http://[::1"}, "such as http://127.0.0.1:4318",
	},
	reflect.TypeFor[listenAddr](): {
		[]string{":4222", "127.0.0.1:0", "[::1]:65535"},
		[]string{"", "4222", ":", ":+80", ":-0", ":65536", ":x", ":0x50"}, "HOST:PORT",
	},
	reflect.TypeFor[optionalAddr](): {
		[]string{"off", ":0"},
		[]string{"", "no", ":+80", ":-0"}, "; or off",
	},
	reflect.TypeFor[dialAddr](): {
		[]string{"10.0.0.2:6222", "[::1]:1"},
		[]string{"", ":6222", "a:0", "a:+1", "a:1,b:2", "a,b:1", "a:65536"}, "HOST:PORT",
	},
	reflect.TypeFor[addresses](): {
		[]string{"10.0.0.2:6222", "a:1,b:2"},
		[]string{"", ":6222", "a:0", "a:+1", "a:1,", "a:65536"}, "HOST:PORT",
	},
}

// TestNumbersOfTheCommandLine sets every flag and every argument that is a
// number, of every command, to values that it takes and to values that it must
// refuse.
func TestNumbersOfTheCommandLine(t *testing.T) {
	parser, err := newParser(&program{out: io.Discard, errOut: io.Discard}, func(int) {})
	if err != nil {
		t.Fatal(err)
	}
	seen := map[reflect.Type]bool{}
	check := func(name string, v *kong.Value) {
		of := v.Target.Type()
		for of.Kind() == reflect.Pointer || of.Kind() == reflect.Slice && numbers[of].right == "" {
			of = of.Elem()
		}
		n, ok := numbers[of]
		if !ok {
			if k := of.Kind(); k >= reflect.Int && k <= reflect.Float64 {
				t.Errorf("%s is a %v, of which this test knows nothing", name, of)
			}
			return
		}
		seen[of] = true
		flag := &kong.Flag{Value: v}
		for _, text := range n.good {
			if err := tryValue(flag, text); err != nil {
				t.Errorf("%s %q: %v", name, text, err)
			}
		}
		for _, text := range n.bad {
			if v.Target.Kind() == reflect.Slice && text == "" {
				continue // is no element
			}
			if err := tryValue(flag, text); err == nil || !strings.Contains(err.Error(), n.right) {
				t.Errorf("%s %q: %v; want an error with %q", name, text, err, n.right)
			}
		}
	}
	_ = kong.Visit(parser.Model, func(n kong.Visitable, next kong.Next) error {
		if node, ok := n.(*kong.Node); ok {
			for _, f := range node.Flags {
				check(node.FullPath()+" --"+f.Name, f.Value)
			}
			for _, p := range node.Positional {
				check(node.FullPath()+" "+p.Name, p)
			}
		}
		return next(nil)
	})
	for of := range numbers {
		if !seen[of] {
			t.Errorf("no flag is a %v", of)
		}
	}
}

// The partition of an append may also be a file, so that its flag is a string.
func TestThePartitionOfAnAppend(t *testing.T) {
	n := numbers[reflect.TypeFor[partition]()]
	for _, text := range slices.DeleteFunc(slices.Clone(n.bad), func(s string) bool { return s == "" }) {
		c := appendCmd{Partition: text}
		if err := c.checkArgs(); exitStatus(err) != exitUsage || !strings.Contains(err.Error(), n.right) {
			t.Errorf("append %s: %v", text, err)
		}
	}
}
