package broker

import (
	"bytes"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// An envelope carries each message between nodes over NATS: a line of text, and
// a body in JSON.
//
//	CANTUS3 <cluster id> <node> <node id> <instance> <number> <signature>
//
// The signature is an HMAC over the subject, the line without the signature,
// and the body. Its key derives from the cluster's secret and id. Any client of
// the NATS server can publish on these subjects, so no message is trusted
// without a signature. "-" stands for an empty field: a node that belongs to no
// cluster yet has no cluster id and no signature.
//
// The number rises with each envelope that an instance, one run of a node,
// sends.
type envelope struct {
	protocol int
	cluster  string // "" for a node that belongs to none yet
	name     string
	id       string // of the data directory
	instance string
	number   uint64

	mac    string // as received
	signed string // the line without the signature
	body   []byte
}

const (
	envelopeMagic = "CANTUS"
	// maxEnvelopeLine bounds the line.
	maxEnvelopeLine = 1024
	// maxUnsigned bounds a body without a valid signature.
	maxUnsigned = 64 << 10
)

var errEnvelope = errors.New("not a message of a Cantus node of this version")

// dash returns "-" for an empty field.
func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

func undash(s string) string {
	if s == "-" {
		return ""
	}
	return s
}

// line returns the envelope's line without the signature.
func (e envelope) line() string {
	return fmt.Sprintf("%s%d %s %s %s %s %d", envelopeMagic, e.protocol, dash(e.cluster), e.name, dash(e.id), e.instance, e.number)
}

// encode returns the envelope in its form on the wire. It is not signed if key
// is nil.
func (e envelope) encode(key []byte, subject string) []byte {
	e.signed, e.mac = e.line(), "-"
	if key != nil {
		e.mac = hex.EncodeToString(e.sign(key, subject))
	}
	b := make([]byte, 0, len(e.signed)+len(e.mac)+2+len(e.body))
	return append(append(append(append(append(b, e.signed...), ' '), e.mac...), '\n'), e.body...)
}

func (e envelope) sign(key []byte, subject string) []byte {
	mac := hmac.New(sha256.New, key)
	for _, part := range []string{subject, e.signed} {
		mac.Write([]byte(part))
		mac.Write([]byte{'\n'})
	}
	mac.Write(e.body)
	return mac.Sum(nil)
}

// proves reports whether the envelope was signed with a key for a subject.
func (e envelope) proves(key []byte, subject string) bool {
	mac, err := hex.DecodeString(e.mac)
	return err == nil && hmac.Equal(mac, e.sign(key, subject))
}

// openEnvelope decodes an envelope, which aliases b. It does not check the
// signature.
func openEnvelope(b []byte) (e envelope, err error) {
	line, _, ok := bytes.Cut(b[:min(len(b), maxEnvelopeLine)], []byte{'\n'})
	if !ok || !bytes.HasPrefix(line, []byte(envelopeMagic)) {
		return e, errEnvelope
	}
	fields := strings.Split(string(line), " ")
	if len(fields) != 7 {
		return e, fmt.Errorf("%w: its line has %d fields", errEnvelope, len(fields))
	}
	e.protocol, err = strconv.Atoi(fields[0][len(envelopeMagic):])
	if err != nil {
		return e, errEnvelope
	}
	if e.number, err = strconv.ParseUint(fields[5], 10, 64); err != nil {
		return e, errEnvelope
	}
	e.cluster, e.name, e.id, e.instance = undash(fields[1]), fields[2], undash(fields[3]), fields[4]
	e.signed, e.mac = string(line[:bytes.LastIndexByte(line, ' ')]), fields[6]
	e.body = b[len(line)+1:]
	return e, nil
}

// messageKey returns the key with which the members of a cluster sign
// envelopes. Nodes that have the secret but belong to no cluster yet use the
// one for the empty id.
func messageKey(secret []byte, cluster string) []byte { return deriveKey(secret, cluster, "messages") }

// newInstance returns a name for a run of a node, or a nonce, that can't be
// guessed.
func newInstance() string { return rand.Text() }
