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

// A node that has no secret yet shows a public key (X25519) for which others seal
// the secret: a key of its own for each sealing, with what both keys have in common
// as the key of AES-256-GCM.

const publicKeySize = 32

var errSealed = errors.New("what holds the cluster's secret can't be opened")

// wrapSecret seals a secret for the holder of a public key. Only context that is
// the same opens it.
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
	box, err := sealingBox(shared, own.PublicKey().Bytes(), public, context)
	if err != nil {
		return nil, err
	}
	// The key is used once, so the nonce may be fixed.
	return box.Seal(own.PublicKey().Bytes(), make([]byte, box.NonceSize()), mustJSON(s), nil), nil
}

// unwrapSecret opens what wrapSecret made.
func unwrapSecret(b []byte, private *ecdh.PrivateKey, context string) (s wal.Secret, err error) {
	if len(b) < publicKeySize {
		return s, errSealed
	}
	from, err := ecdh.X25519().NewPublicKey(b[:publicKeySize])
	if err != nil {
		return s, errSealed
	}
	shared, err := private.ECDH(from)
	if err != nil {
		return s, errSealed
	}
	box, err := sealingBox(shared, b[:publicKeySize], private.PublicKey().Bytes(), context)
	if err != nil {
		return s, err
	}
	text, err := box.Open(nil, make([]byte, box.NonceSize()), b[publicKeySize:], nil)
	if err != nil || json.Unmarshal(text, &s) != nil || len(s.Key) != wal.SecretSize {
		return wal.Secret{}, errSealed
	}
	return s, nil
}

func sealingBox(shared, from, to []byte, context string) (cipher.AEAD, error) {
	key := deriveKey(shared, string(from)+string(to), "sealed secret for "+context)
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(block)
}

// sealContext says whom a secret is sealed for.
func sealContext(cluster, name, id string) string { return fmt.Sprintf("%s/%s/%s", cluster, name, id) }

// fingerprint is what operators compare of a public key, "" without one.
func fingerprint(public []byte) string {
	if len(public) == 0 {
		return ""
	}
	sum := sha256.Sum256(public)
	return hex.EncodeToString(sum[:16])
}
