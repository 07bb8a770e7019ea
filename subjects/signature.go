package subjects

import (
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// FeedGroup is the most messages of the packed feed that one signature covers.
const FeedGroup = 8

// Errors of [FeedVerifier.Verify].
var (
	ErrUnsigned = errors.New("the message has no signature")
	ErrAltered  = errors.New("the message is not one of those that its signature covers")
	ErrForged   = errors.New("the signature was not made with the cluster's key")
)

// AppendFeedHash appends the hash of a packed feed message to the value of
// HeaderHashes, after a blank unless it is the first.
func AppendFeedHash(dst, message []byte) []byte {
	if len(dst) > 0 {
		dst = append(dst, ' ')
	}
	sum := sha256.Sum256(message)
	return base64.StdEncoding.AppendEncode(dst, sum[:])
}

// feedSigned returns the bytes that the signature of a feed message covers.
func feedSigned(partition int, hashes string) []byte {
	b := make([]byte, 0, 32+len(hashes))
	b = append(b, "cantus packed feed\n"...)
	b = strconv.AppendInt(b, int64(partition), 10)
	return append(append(b, '\n'), hashes...)
}

// SignFeed returns the value of HeaderSignature for messages with these hashes.
func SignFeed(key ed25519.PrivateKey, partition int, hashes string) string {
	return base64.StdEncoding.EncodeToString(ed25519.Sign(key, feedSigned(partition, hashes)))
}

// FeedKey returns the text form of a key for [ClusterInfo].
func FeedKey(key ed25519.PublicKey) string { return base64.StdEncoding.EncodeToString(key) }

// ParseFeedKey returns the key whose text form is s.
func ParseFeedKey(s string) (ed25519.PublicKey, error) {
	b, err := base64.StdEncoding.Strict().DecodeString(s)
	if err != nil || len(b) != ed25519.PublicKeySize {
		return nil, fmt.Errorf("%q is not %d bytes in base64", clip(s), ed25519.PublicKeySize)
	}
	return b, nil
}

// FeedVerifier verifies the messages of a partition's packed feed. The zero
// value with a key and a partition is ready. It is used by one goroutine at a
// time.
type FeedVerifier struct {
	Key       ed25519.PublicKey
	Partition int

	verified string // the hashes of the last valid signature
}

// Verify returns nil if the leader made the message, which has the given values
// of HeaderHashes and HeaderSignature. A signature that several messages share
// is verified once.
func (v *FeedVerifier) Verify(hashes, signature string, message []byte) error {
	if hashes == "" || signature == "" {
		return ErrUnsigned
	}
	var space [48]byte
	own := AppendFeedHash(space[:0], message)
	if !listed(hashes, string(own)) {
		return ErrAltered
	}
	if hashes == v.verified {
		return nil
	}
	sig, err := base64.StdEncoding.Strict().DecodeString(signature)
	if err != nil || !ed25519.Verify(v.Key, feedSigned(v.Partition, hashes), sig) {
		return ErrForged
	}
	v.verified = strings.Clone(hashes)
	return nil
}

// listed reports whether a list that is separated by blanks contains item.
func listed(list, item string) bool {
	for one := range strings.SplitSeq(list, " ") {
		if one == item {
			return true
		}
	}
	return false
}
