package subjects_test

import (
	"crypto/ed25519"
	"errors"
	"strings"
	"testing"

	"github.com/cantuslog/cantus/subjects"
)

func feedKey(seed string) (ed25519.PrivateKey, ed25519.PublicKey) {
	key := ed25519.NewKeyFromSeed([]byte((seed + strings.Repeat(".", ed25519.SeedSize))[:ed25519.SeedSize]))
	return key, key.Public().(ed25519.PublicKey)
}

func TestVerifyFeed(t *testing.T) {
	private, public := feedKey("the cluster's")
	foreign, _ := feedKey("another's")
	one, two := []byte("one"), []byte("two")
	own := string(subjects.AppendFeedHash(nil, one))
	both := string(subjects.AppendFeedHash([]byte(own), two))
	good := subjects.SignFeed(private, 7, both)
	for name, tt := range map[string]struct {
		hashes, signature, message string
		want                       error
	}{
		"first":                          {both, good, "one", nil},
		"second":                         {both, good, "two", nil},
		"alone":                          {own, subjects.SignFeed(private, 7, own), "one", nil},
		"no headers":                     {"", "", "one", subjects.ErrUnsigned},
		"no signature":                   {both, "", "one", subjects.ErrUnsigned},
		"no hashes":                      {"", good, "one", subjects.ErrUnsigned},
		"altered":                        {both, good, "onE", subjects.ErrAltered},
		"truncated":                      {both, good, "on", subjects.ErrAltered},
		"lengthened":                     {both, good, "onetwo", subjects.ErrAltered},
		"empty":                          {both, good, "", subjects.ErrAltered},
		"a part of a hash":               {both[:20], good, "one", subjects.ErrAltered},
		"fewer hashes than signed":       {own, good, "one", subjects.ErrForged},
		"a hash that was not signed":     {string(subjects.AppendFeedHash([]byte(both), []byte("three"))), good, "three", subjects.ErrForged},
		"of another partition":           {both, subjects.SignFeed(private, 8, both), "one", subjects.ErrForged},
		"by another key":                 {both, subjects.SignFeed(foreign, 7, both), "one", subjects.ErrForged},
		"a signature that is cut off":    {both, good[:40], "one", subjects.ErrForged},
		"a signature that is not base64": {both, "?", "one", subjects.ErrForged},
	} {
		for _, before := range []string{"", both} { // also where one was verified before
			v := subjects.FeedVerifier{Key: public, Partition: 7}
			if before != "" {
				if err := v.Verify(both, good, one); err != nil {
					t.Fatal(err)
				}
				if tt.hashes == both && errors.Is(tt.want, subjects.ErrForged) {
					continue // the hashes are the leader's, whatever comes with them
				}
			}
			if err := v.Verify(tt.hashes, tt.signature, []byte(tt.message)); !errors.Is(err, tt.want) {
				t.Errorf("%s: %v, want %v", name, err, tt.want)
			}
		}
	}
}

func TestParseFeedKey(t *testing.T) {
	_, public := feedKey("the cluster's")
	text := subjects.FeedKey(public)
	if key, err := subjects.ParseFeedKey(text); err != nil || !key.Equal(public) {
		t.Errorf("%x, %v", key, err)
	}
	for _, bad := range []string{"", text[:20], text + text, "?" + text[1:], strings.TrimSuffix(text, "=")} {
		if _, err := subjects.ParseFeedKey(bad); err == nil {
			t.Errorf("%q is taken", bad)
		}
	}
}
