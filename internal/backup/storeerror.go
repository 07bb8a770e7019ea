package backup

import (
	"cmp"
	"fmt"
	"net/http"
	"regexp"
	"strings"
)

// storeError is the error of an object store. Its text is one line, and says
// what would be right if that is known.
type storeError struct {
	text string
	err  error
}

func (e *storeError) Error() string { return e.text }
func (e *storeError) Unwrap() error { return e.err }

// explain returns an error of the store with a scheme as a storeError.
func explain(scheme string, err error) error {
	if err == nil {
		return nil
	}
	status, text := answer(err)
	text = oneLine(cmp.Or(text, err.Error()))
	for _, h := range hints {
		if h.error.MatchString(text) {
			return &storeError{text + ": " + h.hint, err}
		}
	}
	known := credentials[scheme]
	if known != "" && (status == http.StatusUnauthorized || status == http.StatusForbidden || noCredentials.MatchString(text)) {
		text += fmt.Sprintf(": check the credentials (%s), and what they permit", known)
	}
	return &storeError{text, err}
}

// hints say what would be right for errors with a text.
var hints = []struct {
	error *regexp.Regexp
	hint  string
}{
	{
		regexp.MustCompile(`(?i)(invalid|missing|not find) (a )?region|PermanentRedirect`),
		"set AWS_REGION to the bucket's region, or add ?region=REGION to the URL",
	},
	{
		regexp.MustCompile(`NoSuchBucket|ContainerNotFound|bucket doesn't exist`),
		"create the bucket, or correct its name in the URL",
	},
	{
		regexp.MustCompile(`AccountName is required`),
		"set AZURE_STORAGE_ACCOUNT to the name of the storage account, or add ?storage_account=NAME to the URL",
	},
	{
		regexp.MustCompile(`decode account key`),
		"AZURE_STORAGE_KEY has to be a key of the storage account, which is in base64",
	},
}

// noCredentials matches the errors of stores that were not asked, since no
// credentials were found or none were granted.
var noCredentials = regexp.MustCompile(`get credentials:|find default credentials|getting credentials|cannot fetch token|DefaultAzureCredential: `)

// credentials names where those of the stores are.
var credentials = map[string]string{
	"s3":     "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE",
	"gs":     "GOOGLE_APPLICATION_CREDENTIALS",
	"azblob": "AZURE_STORAGE_ACCOUNT and AZURE_STORAGE_KEY",
}

var (
	// codePrefix is what the library adds.
	codePrefix = regexp.MustCompile(`\bblob \((?:key "[^"]*"\) \()?code=\w+\): `)
	// query matches what follows a URL's path. It may hold a signature.
	query = regexp.MustCompile(`(https?://[^\s"?]+)\?[^\s"]*`)
	ruler = regexp.MustCompile(`-{10,}`)
)

// oneLine returns a text as one line, without queries of URLs.
func oneLine(text string) string {
	text = codePrefix.ReplaceAllString(text, "")
	text = query.ReplaceAllString(text, "$1")
	return strings.Join(strings.Fields(ruler.ReplaceAllString(text, " ")), " ")
}
