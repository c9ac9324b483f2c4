package osstest

import (
	"encoding/base64"
	"encoding/xml"
	"net/http"
	"strconv"
)

// Error is a refusal, in the shape of OSS's error document.
type Error struct {
	XMLName           xml.Name `xml:"Error"`
	Status            int      `xml:"-"`
	Code              string
	Message           string
	RequestID         string `xml:"RequestId"`
	HostID            string `xml:"HostId"`
	Bucket            string `xml:",omitempty"`
	Endpoint          string `xml:",omitempty"`
	Key               string `xml:",omitempty"`
	OSSAccessKeyID    string `xml:"OSSAccessKeyId,omitempty"`
	SignatureProvided string `xml:",omitempty"`
	StringToSign      string `xml:",omitempty"`
	EC                string `xml:",omitempty"`
}

func invalid(message string) *Error {
	return &Error{Status: http.StatusBadRequest, Code: "InvalidArgument", Message: message}
}

func noBucket() *Error {
	return &Error{Status: http.StatusNotFound, Code: "NoSuchBucket", Message: "The specified bucket does not exist.", EC: "0015-00000101"}
}

// err is the error document of an injected fault.
func (f Fault) err() *Error {
	e := &Error{Status: f.Status, Code: f.Code, Message: f.Message, Endpoint: f.Endpoint}
	if e.Code == "" {
		e.Code = map[int]string{
			http.StatusTooManyRequests:     "QpsLimitExceeded",
			http.StatusInternalServerError: "InternalError",
			http.StatusServiceUnavailable:  "ServiceUnavailable",
		}[f.Status]
	}
	if e.Message == "" {
		e.Message = "injected fault"
	}
	return e
}

// write answers with the error: as a document, or where HEAD has none, in a header.
func (e *Error) write(w http.ResponseWriter, c *call) {
	e.RequestID, e.HostID = c.id, c.Host
	if e.EC != "" {
		w.Header().Set("X-Oss-Ec", e.EC)
	}
	if c.Method != http.MethodHead {
		writeXML(w, e.Status, e)
		return
	}
	raw, _ := xml.Marshal(e) // of plain strings: never fails
	w.Header().Set("X-Oss-Err", base64.StdEncoding.EncodeToString(append([]byte(xml.Header), raw...)))
	w.WriteHeader(e.Status)
}

func writeXML(w http.ResponseWriter, status int, document any) {
	raw, _ := xml.MarshalIndent(document, "", "  ") // of plain strings and numbers: never fails
	raw = append([]byte(xml.Header), raw...)
	w.Header().Set("Content-Type", "application/xml")
	w.Header().Set("Content-Length", strconv.Itoa(len(raw)))
	w.WriteHeader(status)
	_, _ = w.Write(raw) // the client went away
}
