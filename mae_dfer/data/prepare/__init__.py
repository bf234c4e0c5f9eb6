"""From the folder of an official data set, as it is downloaded, to the folder that training takes."""
