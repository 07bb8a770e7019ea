package broker

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/ecdh"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/cantuslog/cantus/wal"
)

// A node that has no secret yet shows a public key (X25519), and another node
// wraps the secret for it: it makes a key pair for this one box, and encrypts
// the secret by AES-256-GCM with a key that derives from the Diffie-Hellman
// secret of the two key pairs.

const publicKeySize = 32

var errUnwrap = errors.New("the wrapped cluster secret can't be opened")

// wrapSecret encrypts a secret for the holder of a public key. Unwrapping it
// takes the same context.
func wrapSecret(s wal.Secret, public []byte, context string) ([]byte, error) {
	to, err := ecdh.X25519().NewPublicKey(public)
	if err != nil {
		return nil, err
	}
	own, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	shared, err := own.ECDH(to)
	if err != nil {
		return nil, err
	}
	box, err := wrappingCipher(shared, own.PublicKey().Bytes(), public, context)
	if err != nil {
		return nil, err
	}
	// The key is used once, so the nonce may be fixed.
	return box.Seal(own.PublicKey().Bytes(), make([]byte, box.NonceSize()), mustJSON(s), nil), nil
}

// unwrapSecret opens a secret that wrapSecret has wrapped.
func unwrapSecret(b []byte, private *ecdh.PrivateKey, context string) (s wal.Secret, err error) {
	if len(b) < publicKeySize {
		return s, errUnwrap
	}
	from, err := ecdh.X25519().NewPublicKey(b[:publicKeySize])
	if err != nil {
		return s, errUnwrap
	}
	shared, err := private.ECDH(from)
	if err != nil {
		return s, errUnwrap
	}
	box, err := wrappingCipher(shared, b[:publicKeySize], private.PublicKey().Bytes(), context)
	if err != nil {
		return s, err
	}
	text, err := box.Open(nil, make([]byte, box.NonceSize()), b[publicKeySize:], nil)
	if err != nil || json.Unmarshal(text, &s) != nil || len(s.Key) != wal.SecretSize {
		return wal.Secret{}, errUnwrap
	}
	return s, nil
}

func wrappingCipher(shared, from, to []byte, context string) (cipher.AEAD, error) {
	key := deriveKey(shared, string(from)+string(to), "sealed secret for "+context)
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(block)
}

// wrapContext returns the context for a secret that is wrapped for a node.
func wrapContext(cluster, name, id string) string { return fmt.Sprintf("%s/%s/%s", cluster, name, id) }

// fingerprint returns the fingerprint of a public key, which operators compare;
// "" for no key.
func fingerprint(public []byte) string {
	if len(public) == 0 {
		return ""
	}
	sum := sha256.Sum256(public)
	return hex.EncodeToString(sum[:16])
}
