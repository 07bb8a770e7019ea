package subjects_test

import (
	"bytes"
	"crypto/ed25519"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/cantuslog/cantus/subjects"
)

// FuzzVerifyFeed verifies a message of the packed feed. Only what the cluster's
// key has signed passes, for its partition and with its payload.
func FuzzVerifyFeed(f *testing.F) {
	private := ed25519.NewKeyFromSeed(bytes.Repeat([]byte{1}, 32))
	other := ed25519.NewKeyFromSeed(bytes.Repeat([]byte{2}, 32))
	hashes := string(subjects.AppendFeedHash(subjects.AppendFeedHash(nil, []byte("a")), []byte("b")))
	f.Add(hashes, subjects.SignFeed(other, 0, hashes), []byte("a"))
	f.Add(hashes, subjects.SignFeed(private, 1, hashes), []byte("a"))
	f.Add(" "+hashes, "", []byte("b"))
	f.Add(strings.Repeat(" ", 100), "====", []byte{})
	f.Fuzz(func(t *testing.T, hashes, signature string, message []byte) {
		v := subjects.FeedVerifier{Key: private.Public().(ed25519.PublicKey)}
		err := v.Verify(hashes, signature, message)
		if !errors.Is(err, subjects.ErrUnsigned) && !errors.Is(err, subjects.ErrAltered) && !errors.Is(err, subjects.ErrForged) {
			t.Fatalf("%q with %q passes for %q: %v", hashes, signature, message, err)
		}
		good := string(subjects.AppendFeedHash(nil, message))
		if err := v.Verify(good, subjects.SignFeed(private, 0, good), message); err != nil {
			t.Fatal(err)
		}
		if err := v.Verify(good, signature, append(message, 'x')); !errors.Is(err, subjects.ErrAltered) && !errors.Is(err, subjects.ErrUnsigned) {
			t.Fatalf("an altered message: %v", err)
		}
		if key, err := subjects.ParseFeedKey(signature); err == nil && subjects.FeedKey(key) != signature {
			t.Fatalf("key %q became %q", signature, subjects.FeedKey(key))
		}
	})
}

// FuzzNames parses the small things in requests and subjects: durations, kinds,
// message ids, lists of locks, keys, prefixes, versions.
func FuzzNames(f *testing.F) {
	for _, s := range []string{"5s", "1.5h3m", "-1s", "9999999999h", "1e9s", "pay", "a.b", "a,b,,c", " x ", "é\u00a0", "\xff", ">", "*", "v1.2.3", "2026-11-01T08:00:00.5+01:00", "2262-04-11T23:47:16.854775807Z", strings.Repeat("a", 200)} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if d, err := subjects.ParseDuration(s); err == nil && d < 0 {
			t.Fatalf("%q is %v", s, d)
		}
		if at, err := subjects.ParseTime(s); err == nil {
			again, err := subjects.ParseTime(at.UTC().Format(time.RFC3339Nano))
			if err != nil || !again.Equal(at) || again.UnixNano() != at.UnixNano() {
				t.Fatalf("%q is %v, and that is %v, %v", s, at, again, err)
			}
		}
		for what, err := range map[string]error{"kind": subjects.CheckKind(s), "cursor": subjects.CheckCursor(s), "lock": subjects.CheckLock(s)} {
			if err == nil && (s == "" || strings.ContainsAny(s, " \t\r\n\x00") || what != "lock" && strings.ContainsAny(s, ".*>")) {
				t.Fatalf("%q is a %s", s, what)
			}
		}
		names := subjects.LockNames(s)
		if len(names) != strings.Count(s, ",")+1 {
			t.Fatalf("%q are the locks %q", s, names)
		}
		for _, n := range []int{1, 3, 1024} {
			if p := subjects.PartitionOf(s, n); p < 0 || p >= n {
				t.Fatalf("key %q is in partition %d of %d", s, p, n)
			}
		}
		if subjects.CheckPrefix(s) == nil && strings.ContainsAny(s, " *>\r\n") {
			t.Fatalf("%q is a prefix", s)
		}
		_ = subjects.CheckVersion(s)
		_ = subjects.CheckMsgID(s)
	})
}
